"""Why an attack on an update works or fails, in words: from measured facts to sentences."""

from __future__ import annotations

from collections.abc import Iterator

from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.losses import LossName
from shadow_defense.report.records.audit import TOO_LONG, Facts, Reason

DROWNED = 0.5
"""Share of the last layer's update from which on noise is said to drown it: a quarter of its energy."""

AUDIBLE = 0.02
"""Share below which the last layer's update is said to be without noise."""

SPARSE = 0.2
"""Share of zeros from which on an update is said to be thinned out."""

LARGE_BATCH = 8
"""Images in one gradient from which on published attacks on a smooth network without priors mix them up."""


def not_given(facts: Facts) -> tuple[str, ...]:
    """What of the client's training was not given, or is belied by the update: of ``optimiser``, ``loss``."""
    optimiser = facts.optimiser is None or (facts.optimiser == "sgd" and facts.like_signs)
    return tuple(name for name, unknown in (("optimiser", optimiser), ("loss", facts.loss is None)) if unknown)


def diagnose(facts: Facts) -> tuple[Reason, ...]:
    """What about the update, the local training and the architecture hides the images or gives them away."""
    return (
        *_of_the_values(facts),
        *_of_the_training(facts),
        *_of_the_batch(facts),
        *_of_the_steps(facts),
        *_of_batch_norm(facts),
        *_of_the_architecture(facts),
        *_of_the_labels(facts),
    )


def _of_the_values(facts: Facts) -> Iterator[Reason]:
    if facts.zero_tensors == facts.tensors:
        yield Reason("hides", "The update is zero: it carries nothing.")
        return
    thinned = facts.zeros > SPARSE
    if facts.relative_norm > TOO_LONG:
        yield Reason(
            "not known",
            f"The update is {facts.relative_norm:.1f} times as long as the global model's parameters, longer than a "
            "round's training makes it: something was added to it, or it is no difference to this model.",
        )
    # Nothing that noise was added to is equally large everywhere.
    if facts.noise is not None and not thinned and not facts.like_signs:
        yield _of_the_sums(facts, facts.noise)
    if thinned:
        tensors = f" ({facts.zero_tensors} of {facts.tensors} tensors altogether)" if facts.zero_tensors else ""
        yield Reason(
            "hides",
            f"{facts.zeros:.0%} of the update's values are exactly zero{tensors}: it was thinned out, or units of the "
            "network are dead. An attack that matches all values is misled; one that leaves the zeros out is not.",
        )
    if facts.rounding > AUDIBLE:
        yield Reason(
            "hides",
            f"The update is tiny, {facts.relative_norm:.1e} of the length of the parameters: float32's rounding of the "
            f"difference is {facts.rounding:.0%} of it. Updates sent in higher precision would not be hidden by this.",
        )


def _of_the_sums(facts: Facts, noise: float) -> Reason:
    """What the sums of the last layer's rows tell, each class a row: of SGD on cross entropy alone they are zero."""
    if noise <= max(AUDIBLE, 4 * facts.rounding):
        belied = facts.loss not in (None, "ce")
        other = f" {_training(facts)} leaves no such sums: check what was given." if belied else ""
        return Reason(
            "gives away",
            "There is no noise on the update: the rows of the last layer's add up to zero, as SGD on cross entropy "
            f"leaves them. A defense that acts on the images themselves is not seen by this.{other}",
        )
    if facts.plain is None:
        return Reason(
            "not known",
            "Whether a defense disturbed the update is not known: the rows of the last layer's do not add up to zero, "
            "as those of SGD on cross entropy would undisturbed, and those of other optimisers and losses would not. "
            "Give --optimiser and --loss.",
        )
    if not facts.plain:
        return Reason(
            "not known",
            "Whether a defense disturbed the update is not known: what would tell, the sums of the last layer's rows, "
            f"is zero for SGD on cross entropy alone, and the client trained by {_training(facts)}.",
        )
    where = f"about {facts.noise_deviation:.2g} in each value" if facts.noise_deviation is not None else "unknown"
    cause = (
        "The rows of the last layer's update do not add up to zero, as those of SGD on cross entropy do: noise of "
        f"{where} lies on it, {noise:.0%} of the length of its update"
    )
    if noise > DROWNED:
        return Reason("hides", f"Noise drowns the update. {cause}; layers with smaller updates are hit harder still.")
    return Reason("hides", f"Noise blurs the update. {cause}. That lowers the quality of an image, no more.")


LOSSES: dict[LossName, str] = {"ce": "cross entropy", "bce": "sigmoid cross entropy", "mse": "squares"}


def _training(facts: Facts) -> str:
    optimiser = "an optimiser that was not given" if facts.optimiser is None else OPTIMISERS[facts.optimiser]
    return f"{optimiser} on {'a loss that was not given' if facts.loss is None else LOSSES[facts.loss]}"


OPTIMISERS: dict[OptimiserName, str] = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


def _of_the_training(facts: Facts) -> Iterator[Reason]:
    if facts.like_signs:
        against = ", and not like the SGD that was given" if facts.optimiser == "sgd" else ""
        yield Reason(
            "gives away",
            f"{facts.equal:.0%} of the update's values are equally large: it looks like the first step of Adam or "
            f"RMSprop (or a few on the same images), or like signs alone{against}.",
        )
    unknown = not_given(facts)
    if unknown:
        assumed = {"optimiser": "Adam" if facts.like_signs else "SGD", "loss": "cross entropy"}
        yield Reason(
            "not known",
            f"Not given: the client's {' and '.join(unknown)}. Attacks assume "
            f"{' on '.join(assumed[name] for name in unknown)}; if it was another, that they fail says nothing of the "
            f"update. Give {' and '.join(f'--{name}' for name in unknown)}.",
        )


def _of_the_batch(facts: Facts) -> Iterator[Reason]:
    if facts.samples == 1:
        yield Reason("gives away", "The update comes from one image: there is nothing that it could be mixed up with.")
        return
    batch = facts.batch_size or facts.samples
    unknowns = facts.samples * facts.image_values
    if unknowns > facts.update_values:
        yield Reason(
            "hides",
            f"{facts.samples} images have {unknowns:,} values and the update {facts.update_values:,}: it cannot "
            "determine them without a prior.",
        )
    if batch >= LARGE_BATCH:
        yield Reason(
            "hides",
            f"Each gradient is the mean over a batch of {batch} images: gradient matching alone mixes batches of this "
            "size up. Attacks with a generator, batch norm's statistics or a malicious server are less impressed.",
        )
    elif batch > 1:
        yield Reason(
            "gives away",
            f"Each gradient is the mean over {batch} images only: harder than one image, and within reach of published "
            "attacks.",
        )
    else:
        yield Reason("gives away", "Batches hold one image: each step of the local training is about one image alone.")


def _of_the_steps(facts: Facts) -> Iterator[Reason]:
    if facts.steps is None:
        yield Reason(
            "limits the attack",
            "The local training is not known: the update is taken as one step on all images. If it was more, what is "
            "matched is wrong. Give --learning-rate, --steps and --batch-size.",
        )
    elif facts.steps > 1:
        yield Reason(
            "hides",
            f"{facts.steps} local steps: each one's gradient is of another model, and the order of the images is not "
            "known. An attack has to simulate them all, or takes them as one average step.",
        )
    elif facts.optimiser == "sgd" and not facts.like_signs:
        yield Reason("gives away", "One local step: the update is a gradient, up to the learning rate.")
    else:
        known = "" if facts.optimiser is None or facts.like_signs else f" of {OPTIMISERS[facts.optimiser]}"
        yield Reason(
            "gives away",
            f"One local step{known}: the update holds the gradient's signs at least, which are enough to rebuild an "
            "image from.",
        )


def _of_batch_norm(facts: Facts) -> Iterator[Reason]:
    if facts.batch_norm is None:
        yield Reason("gives away", "The model has no batch norm: the gradient of an image depends on no other image.")
    elif facts.batch_norm == "eval":
        yield Reason(
            "gives away", "Batch norm stands still (eval mode): the gradient of an image depends on no other image."
        )
    elif facts.statistics_shared:
        yield Reason(
            "gives away",
            "Batch norm in train mode uploads the mean and variance of every layer's input: attacks that match them "
            "(gradinversion, model-based) read them off the buffers.",
        )
    else:
        yield Reason(
            "hides",
            "Batch norm in train mode mixes the images of a batch, and its statistics are not in the update: an attack "
            "can neither read nor simulate them rightly.",
        )


def _of_the_architecture(facts: Facts) -> Iterator[Reason]:
    solvable = facts.samples == 1 and facts.steps == 1 and facts.optimiser == "sgd" and not facts.like_signs
    if facts.exact == "first layer":
        yield Reason(
            "gives away",
            "A fully connected layer with a bias reads the image itself: `fully-connected-leak` reads it off by one "
            f"division{', exactly' if solvable else ', exactly for one image in one step of SGD'}.",
        )
    elif facts.exact == "chain":
        yield Reason(
            "gives away",
            "The model is a plain chain of invertible layers: `r-gap` solves for the image layer by layer"
            f"{'' if solvable else ', for one image in one step of SGD'}.",
        )
    kinks = [name for name, present in (("ReLU", facts.hard), ("max pooling", facts.pools)) if present]
    if kinks:
        yield Reason(
            "hides",
            f"The gradient is cut off by {' and '.join(kinks)} where a unit is not active: there, an attack has no "
            "slope to follow.",
        )
    elif facts.exact is None:
        yield Reason("gives away", "All activations are smooth: an attack has a slope to follow everywhere.")
    if facts.drops:
        yield Reason("hides", "Dropout drew units at random: an attack does not know which, and simulates others.")


def _of_the_labels(facts: Facts) -> Iterator[Reason]:
    if not facts.labels_known and facts.samples > 1:
        yield Reason(
            "limits the attack",
            "Labels are not known: they are inferred from the last layer, which may be wrong for several images. "
            "Give --labels, with a threat model that grants them.",
        )

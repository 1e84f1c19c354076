"""Why an attack on an update works or fails, in words: from measured facts to sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shadow_defense.experiment.audit.facts import Facts

Effect = Literal["hides", "gives away", "limits the attack"]
"""What a reason means for the client. What limits only this attack protects from no better one."""

DROWNED = 0.5
"""Share of the last layer's update from which on noise is said to drown it: a quarter of its energy."""

AUDIBLE = 0.02
"""Share below which the last layer's update is said to be without noise."""

SPARSE = 0.2
"""Share of zeros from which on an update is said to be thinned out."""

LARGE_BATCH = 8
"""Images in one gradient from which on published attacks on a smooth network without priors mix them up."""

EXPLAINED = 1e-3
"""Cosine distance up to which a reconstruction explains the update; the mean image alone often comes to 0.02."""

RECOGNISABLE = 0.5
"""SSIM from which on a reconstruction that beats the template counts as rebuilt: of many, one always beats it a bit."""


@dataclass(frozen=True)
class Reason:
    """One thing about the update, and what it does."""

    effect: Effect
    sentence: str


@dataclass(frozen=True)
class Outcome:
    """How one attack ended.

    Attributes:
        image: number, from 1, of the true image that was rebuilt best; None without the truth.
        ssim, template_ssim: of the best reconstruction, and of the template, to that image.
        distance: 1 - cosine of the update that the reconstructions cause and the observed one.
        template_distance: the same for the template in every place.
        sought: images that were sought.
        reads_statistics: whether the attack matches batch norm's statistics.
    """

    attack: str
    distance: float
    template_distance: float | None
    sought: int
    image: int | None = None
    ssim: float | None = None
    psnr: float | None = None
    template_ssim: float | None = None
    reads_statistics: bool = False

    @property
    def closer(self) -> bool:
        """Whether the best reconstruction is more similar to its image than the template, which costs no update."""
        return self.ssim is not None and self.template_ssim is not None and self.ssim > max(self.template_ssim, 0.0)

    @property
    def rebuilt(self) -> bool | None:
        """Whether an image came out: recognisable, and closer than the template where there is one; None: unknown."""
        if self.ssim is None:
            return None
        return self.ssim >= RECOGNISABLE and (self.template_ssim is None or self.closer)


def diagnose(facts: Facts) -> tuple[Reason, ...]:
    """What about the update, the local training and the architecture hides the images or gives them away."""
    return (
        *_of_the_values(facts),
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
    if facts.noise is not None and not thinned and facts.noise > max(AUDIBLE, 4 * facts.rounding):
        size = f"{facts.noise:.0%} of the length of its update"
        where = f"about {facts.noise_deviation:.2g} in each value" if facts.noise_deviation is not None else "unknown"
        cause = (
            "The rows of the last layer's update do not add up to zero, as those of cross entropy always do: noise of "
            f"{where} lies on it, {size}"
        )
        if facts.noise > DROWNED:
            yield Reason(
                "hides",
                f"Noise drowns the update. {cause}; layers with smaller updates are hit harder still.",
            )
        else:
            yield Reason("hides", f"Noise blurs the update. {cause}. That lowers the quality of an image, no more.")
    elif facts.noise is not None and not thinned:
        yield Reason(
            "gives away",
            "There is no noise on the update: the rows of the last layer's add up to zero, as training leaves them. A "
            "defense that acts on the images themselves is not seen by this.",
        )
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
            "matched is wrong. --learning-rate, --steps and --batch-size tell it.",
        )
    elif facts.steps > 1:
        yield Reason(
            "hides",
            f"{facts.steps} local steps: each one's gradient is of another model, and the order of the images is not "
            "known. An attack has to simulate them all, or takes them as one average step.",
        )
    else:
        yield Reason("gives away", "One local step: the update is a gradient, up to the learning rate.")


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
    solvable = facts.samples == 1 and facts.steps in (None, 1)
    if facts.exact == "first layer":
        yield Reason(
            "gives away",
            "A fully connected layer with a bias reads the image itself: `fully-connected-leak` reads it off by one "
            f"division{', exactly' if solvable else ', exactly for one image in one step'}.",
        )
    elif facts.exact == "chain":
        yield Reason(
            "gives away",
            "The model is a plain chain of invertible layers: `r-gap` solves for the image layer by layer"
            f"{'' if solvable else ', for one image in one step'}.",
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
            "--labels tells them, to a threat model that grants them.",
        )


def judge(outcome: Outcome, facts: Facts) -> tuple[str, ...]:
    """One attack's end in sentences: what came out, and whether a failure was one of search or of the update."""
    return (_came_out(outcome), *_why(outcome, facts))


def _came_out(outcome: Outcome) -> str:
    if outcome.ssim is None:
        return (
            f"{outcome.attack} ended ({_cosine(outcome)}). How close its images are to the client's, only --truth "
            "would tell."
        )
    blank = (
        ""
        if outcome.template_ssim is None
        else f"; the mean of public images has {outcome.template_ssim:.2f} without any update"
    )
    numbers = f"SSIM {outcome.ssim:.2f}, PSNR {outcome.psnr:.1f} dB{blank}"
    if outcome.rebuilt:
        return f"{outcome.attack} rebuilt image {outcome.image} ({numbers}): the update gives it away."
    best = f"best, image {outcome.image}: {numbers}"
    if outcome.closer:
        return f"{outcome.attack} came closer than the mean image, and not close enough to recognise ({best})."
    failed = "comes closer than the mean image" if outcome.template_ssim is not None else "is recognisable"
    return f"{outcome.attack} failed: nothing that it rebuilt {failed} ({best})."


def _cosine(outcome: Outcome) -> str:
    template = outcome.template_distance
    blank = "" if template is None else f"; of the mean image in every place {1 - template:.4f}"
    return f"cosine to the observed update {1 - outcome.distance:.4f}{blank}"


def _why(outcome: Outcome, facts: Facts) -> Iterator[str]:
    failed = outcome.rebuilt is False
    if outcome.sought < facts.samples:
        yield f"It sought {outcome.sought} of {facts.samples} images: the steps were taken as one average step."
    if failed and outcome.distance <= EXPLAINED:
        yield (
            f"What it found explains the update ({_cosine(outcome)}) and is not the image: many images fit this "
            "update, and a better prior would help more than a longer search."
        )
    elif outcome.distance > EXPLAINED and outcome.rebuilt is not True:
        hidden = [reason for reason in diagnose(facts) if reason.effect == "hides"]
        cause = (
            "either what hides the images (below) keeps any image from it, or the search did not get there"
            if hidden
            else "the search did not get there, and nothing in the update keeps it from it"
        )
        yield (
            f"It found no image that explains the update ({_cosine(outcome)}): {cause}. More "
            "--iterations or another attack may succeed: a failed search is no protection."
        )
    if failed and facts.batch_norm == "train" and facts.statistics_shared and not outcome.reads_statistics:
        yield "It does not read batch norm's statistics, which the update holds: try --attack gradinversion."
    if failed and facts.exact is not None and outcome.attack not in ("fully-connected-leak", "r-gap"):
        solver = "fully-connected-leak" if facts.exact == "first layer" else "r-gap"
        yield f"The architecture allows an exact solution: try --attack {solver}."

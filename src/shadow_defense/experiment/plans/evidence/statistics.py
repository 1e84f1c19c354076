"""From what a study has finished to its settings and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from shadow_defense.experiment.analysis import by_image
from shadow_defense.experiment.plans.evidence.leftover import BySize, most_left
from shadow_defense.experiment.plans.evidence.plan import Evidence, controls, predictings
from shadow_defense.experiment.store import RecordTask
from shadow_defense.experiment.tasks.predicting import Predicted, asked_together
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.metrics.confidence import Estimate, mean_interval
from shadow_defense.metrics.contrasts import contrast, ends, holm, images_to_settle, two_sided
from shadow_defense.metrics.intervals import DRAWS, macro_f1
from shadow_defense.metrics.pareto import pareto_front
from shadow_defense.metrics.utility import utility
from shadow_defense.report.records.evidence import (
    CONTROLS,
    READING_ALONE,
    TEST_IMAGES,
    Difference,
    Left,
    Setting,
    Together,
    Worth,
)
from shadow_defense.seeds import named_generator

ByImage = Mapping[tuple[int, str, str], Mapping[str, float]]


def settings_of(evidence: Evidence, left: Mapping[tuple[str, str], BySize]) -> tuple[Setting, ...]:
    """Every arm with every model of which something is known, and what public images alone are worth.

    Args:
        left: by attacks, of each model and arm.
    """
    found = []
    for model, trial in evidence.first_trials().items():
        predicted = {arm: predicted_of(evidence, model, arm) for arm in trial.config.arms}
        first = next(iter(predicted.values()))
        known = {seed: controls(evidence.trial(model, seed)) for seed in evidence.grid.seeds_of(model)}
        beside = {
            arm: _loaded(evidence, {seed: each[arm] for seed, each in known.items() if arm in each}) for arm in CONTROLS
        }
        reading = beside[READING_ALONE]
        undefended = _with(reading, first)
        priced = {
            arm: Setting(
                model=model,
                arm=arm,
                worth=_worth(own) if own else None,
                f1_lost=None if own is first else _only(lost_f1(first, own)),
                auroc_lost=None if own is first else _lost_auroc(first, own),
                together=None if own is reading else beside_reading(reading, own, None if own is first else undefended),
            )
            for arm, own in {**predicted, **beside}.items()
        }
        tried = {arm: _tried(evidence, model, arm, left[model, arm]) for arm in predicted}
        arms = [
            replace(
                priced[arm],
                left=_left(evidence, model, arm, tried[arm]),
                tried=tried[arm],
                withheld=(bound := evidence.bound(model, arm)) is not None and bound.withheld,
            )
            for arm in predicted
        ]
        found += _with_front([each for each in arms if each.worth or each.left or each.withheld])
        found += [priced[arm] for arm in beside if priced[arm].worth]
    return tuple(found)


def predicted_of(evidence: Evidence, model: str, arm: str) -> dict[int, Predicted]:
    """By seed what the trainings of an arm say of the test images, as far as they are there."""
    tasks = {seed: predictings(evidence.trial(model, seed)) for seed in evidence.grid.seeds_of(model)}
    return _loaded(evidence, {seed: own[arm] for seed, own in tasks.items() if arm in own})


def _loaded(evidence: Evidence, tasks: Mapping[int, RecordTask[Predicted]]) -> dict[int, Predicted]:
    store = evidence.store
    return {seed: each.load(store) for seed, each in tasks.items() if store.has(each)}


def _only(lost: tuple[Estimate, float] | None) -> Estimate | None:
    return None if lost is None else lost[0]


def _tried(evidence: Evidence, model: str, arm: str, sizes: BySize) -> Left | None:
    """What is believed of attacks, where no worst case bounds them."""
    return None if evidence.is_drawn_once(model, arm) else most_left(evidence, sizes)


def _left(evidence: Evidence, model: str, arm: str, tried: Left | None) -> Left | None:
    """The worst case, or what attacks left that were ``tried``, whichever is more."""
    known = [each for each in (evidence.worst_case(model, arm), tried) if each is not None]
    return max(known, key=lambda each: each.above.mean, default=None)


def _worth(predicted: Mapping[int, Predicted]) -> Worth:
    draws = over_seeds(torch.stack([f1_draws(each, seed) for seed, each in predicted.items()]))
    values = tuple(f1_of(each) for each in predicted.values())
    curves = [value for value in map(_auroc, predicted.values()) if value is not None]
    return Worth(
        f1=Estimate(sum(values) / len(values), ends(draws), _images(predicted)),
        f1_of_seeds=values,
        auroc=mean_interval(curves) if curves else None,
        balanced=mean_interval([_balanced(each) for each in predicted.values()]),
    )


def _auroc(predicted: Predicted) -> float | None:
    probabilities = torch.tensor(predicted.probabilities, dtype=torch.float64)
    return utility(probabilities, torch.tensor(predicted.labels))["auroc"]


def _lost_auroc(first: Mapping[int, Predicted], own: Mapping[int, Predicted]) -> Estimate | None:
    """How much less it is than the first's, of the seeds that both have."""
    pairs = [(_auroc(first[seed]), _auroc(own[seed])) for seed in own if seed in first]
    lost = [one - other for one, other in pairs if one is not None and other is not None]
    return mean_interval(lost) if lost else None


def _with(reading: Mapping[int, Predicted], own: Mapping[int, Predicted]) -> dict[int, Predicted]:
    """By seed what an arm's model and the reading network say together."""
    return {seed: asked_together(reading[seed], each) for seed, each in own.items() if seed in reading}


def beside_reading(
    reading: Mapping[int, Predicted], own: Mapping[int, Predicted], undefended: Mapping[int, Predicted] | None
) -> Together | None:
    """What an arm's models are worth where the reading network answers too, of the seeds that both have; F1 against
    what the first arm's models and that network say. None where they have no seed in common."""
    both = _with(reading, own)
    if not both:
        return None
    return Together(
        worth=_worth(both),
        auroc_added=_lost_auroc(both, reading),
        f1_lost=None if undefended is None else _only(lost_f1(undefended, both)),
    )


def _images(predicted: Mapping[int, Predicted]) -> int:
    return sum(len(each.labels) for each in predicted.values())


def _balanced(predicted: Predicted) -> float:
    """Mean recall of the classes that there are."""
    labels, called = torch.tensor(predicted.labels), torch.tensor(predicted.called)
    return float(torch.stack([(called[labels == label] == label).double().mean() for label in labels.unique()]).mean())


def f1_of(predicted: Predicted) -> float:
    """Macro F1 on all test images."""
    return float(_macro_f1(predicted, torch.ones(1, len(predicted.labels), dtype=torch.float64)))


def f1_draws(predicted: Predicted, seed: int) -> Float64[Tensor, " draws"]:
    """Macro F1 of each resample of the test images, which all arms of a seed share."""
    count = len(predicted.labels)
    drawn = torch.randint(count, (DRAWS, count), generator=named_generator(seed, "bootstrap", "f1"))
    weights = torch.zeros(DRAWS, count, dtype=torch.float64)
    return _macro_f1(predicted, weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64)))


def over_seeds(draws: Float64[Tensor, "seeds draws"]) -> Float64[Tensor, " draws"]:
    """The mean over as many seeds, drawn again as the images of each are: the next training would be another."""
    picked = torch.randint(len(draws), draws.shape, generator=named_generator(0, "bootstrap", "seeds"))
    return draws.gather(0, picked).mean(dim=0)


def _macro_f1(predicted: Predicted, weights: Float64[Tensor, "draws n"]) -> Float64[Tensor, " draws"]:
    classes = len(predicted.probabilities[0])
    return macro_f1(torch.tensor(predicted.called), torch.tensor(predicted.labels), weights, classes)


def lost_f1(first: Mapping[int, Predicted], own: Mapping[int, Predicted]) -> tuple[Estimate, float] | None:
    """Macro F1 of the first arm less that of another, over the seeds that both have, and the p value of no loss.

    Its interval is over trainings and test images both: trainings differ by more than images do.
    """
    both = {seed: own[seed] for seed in own if seed in first}
    if not both:
        return None
    draws = over_seeds(torch.stack([f1_draws(first[seed], seed) - f1_draws(each, seed) for seed, each in both.items()]))
    lost = [f1_of(first[seed]) - f1_of(each) for seed, each in both.items()]
    return Estimate(sum(lost) / len(lost), ends(draws), _images(both)), two_sided(draws)


def _by_seed(own: ByImage, other: ByImage, name: str) -> dict[int, list[float]]:
    """Differences over the images that both have."""
    found: dict[int, list[float]] = {}
    for image, metrics in own.items():
        if image in other and name in metrics and name in other[image]:
            found.setdefault(image[0], []).append(metrics[name] - other[image][name])
    return found


def _with_front(settings: Sequence[Setting]) -> list[Setting]:
    """With the arms marked that no other beats by the means of macro F1 and of what is left.

    What attacks left counts only where they rebuild what nothing protects: else everything looks protected. F1 is that
    lost to the first arm over common seeds, of which a dear arm has fewer.
    """
    counting = settings if settings and settings[0].gives_away else [each for each in settings if each.stands]
    points = {
        each.arm: (0.0 if each.f1_lost is None else -each.f1_lost.mean, -each.left.above.mean)
        for each in counting
        if each.left and each.worth and (each.f1_lost or each is settings[0])
    }
    marks = dict(zip(points, pareto_front(list(points.values())), strict=True))
    return [replace(each, on_front=marks.get(each.arm, False)) for each in settings]


def differences_of(evidence: Evidence, scores: Mapping[str, Sequence[Score]]) -> tuple[Difference, ...]:
    """Each arm against the first: PSNR by attack, all rounds of an image together, and macro F1."""
    found = []
    for model in evidence.grid.models:
        arms = list(evidence.first_trials()[model].config.arms)
        for attack in evidence.grid.attacks:
            reference = by_image(scores[model], arms[0], attack)
            contrasts = {
                arm: contrast(paired)
                for arm in arms[1:]
                if (paired := _by_seed(by_image(scores[model], arm, attack), reference, "psnr_whole"))
            }
            adjusted = holm({arm: each.p for arm, each in contrasts.items()})
            found += [
                _difference(model, arm, attack, "psnr", each.difference, each.effect, adjusted[arm])
                for arm, each in contrasts.items()
            ]
        first = predicted_of(evidence, model, arms[0])
        lost = {arm: each for arm in arms[1:] if (each := lost_f1(first, predicted_of(evidence, model, arm)))}
        adjusted = holm({arm: p for arm, (_, p) in lost.items()})
        tested = max((len(each.labels) for each in first.values()), default=1)
        found += [
            _difference(model, arm, TEST_IMAGES, "f1_lost", estimate, None, adjusted[arm], tested)
            for arm, (estimate, _) in lost.items()
        ]
    return tuple(found)


def _difference(
    model: str, arm: str, by: str, measure: str, difference: Estimate, effect: float | None, p: float, tested: int = 1
) -> Difference:
    """``tested``: images that a training is tested on, where trainings are what more can be had of."""
    images = images_to_settle(difference, 0.0)
    settled = None if images is None else math.ceil(images / tested)
    return Difference(
        model=model, arm=arm, by=by, measure=measure, difference=difference, effect=effect, p=p, settled_by=settled
    )

"""Which of several attacks on an update is believed: by what it leaves unexplained, never by the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shadow_defense.experiment.analysis import Image
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.metrics.contrasts import Strata
from shadow_defense.report.records.scores import MEAN_IMAGE

PSNR, SSIM = "psnr_whole", "ssim_whole"


@dataclass(frozen=True)
class Attacked:
    """What attacks left of one arm's images in the round that left most.

    Attributes:
        round: 0-based.
        scores: of the attack that is believed of each update of that round.
        above: PSNR above the mean image's, by seed, of what these rebuilt.
        similar: their SSIM.
        closest: as ``above``, of the attack and round that came closest to each image, which only the truth tells.
    """

    round: int
    scores: tuple[Score, ...]
    above: Strata
    similar: Strata
    closest: Strata


def believed(scores: Sequence[Score]) -> list[Score]:
    """Of each update, that of a client in a round of one seed, the attack with the least misfit.

    One whose misfit is not known is believed where there is no other; of equal ones the first.
    """
    chosen: dict[tuple[int, int, str], Score] = {}
    for score in scores:
        update = (score.seed, score.round, score.client)
        if update not in chosen or _doubt(score) < _doubt(chosen[update]):
            chosen[update] = score
    return list(chosen.values())


def _doubt(score: Score) -> float:
    return math.inf if score.misfit is None else score.misfit


def attacked(scores: Sequence[Score], arm: str) -> Attacked | None:
    """What is left of an arm's images by the attacks that are believed; None where none was scored.

    The round counts that left most: each round's update has to hide its images.

    Args:
        scores: of all arms, the mean image's too.
    """
    own = [score for score in scores if score.arm == arm]
    guessed = _by_image([score for score in scores if score.arm == MEAN_IMAGE], PSNR)
    rounds: dict[int, list[Score]] = {}
    for score in believed(own):
        rounds.setdefault(score.round, []).append(score)
    above = {round: _above(each, guessed) for round, each in rounds.items()}
    means = {round: _mean(each) for round, each in above.items() if each}
    if not means:
        return None
    round = max(means, key=lambda each: means[each])
    similar: dict[int, list[float]] = {}
    for (seed, _, _), value in _by_image(rounds[round], SSIM).items():
        similar.setdefault(seed, []).append(value)
    return Attacked(round, tuple(rounds[round]), above[round], similar, _above(own, guessed))


def _by_image(scores: Sequence[Score], name: str) -> dict[Image, float]:
    """The greatest value of a metric for each image."""
    found: dict[Image, float] = {}
    for score in scores:
        for sample, row in score.matched().items():
            if name in row.metrics:
                image = (score.seed, score.client, sample)
                found[image] = max(row.metrics[name], found.get(image, -math.inf))
    return found


def _above(scores: Sequence[Score], guessed: Mapping[Image, float]) -> dict[int, list[float]]:
    """By seed, over the images that both have."""
    found: dict[int, list[float]] = {}
    for image, value in _by_image(scores, PSNR).items():
        if image in guessed:
            found.setdefault(image[0], []).append(value - guessed[image])
    return found


def _mean(values: Strata) -> float:
    each = [value for own in values.values() for value in own]
    return sum(each) / len(each)

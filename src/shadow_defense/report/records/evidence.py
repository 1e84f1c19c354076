"""The record of a study: every arm against what is asked of a setting, and differences with their corrections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shadow_defense.metrics.confidence import LEVEL
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.reading import Measure

F1_LOST, LEFT, FOUND = 0.01, 2.0, 0.05
"""The most that a setting may cost and leave: macro F1 lost, dB above the mean image, share of images found first."""

PUBLIC_ALONE = "public images alone"
"""The arm of a model that no client had a part in."""

READING_ALONE = "reading network alone"
"""The arm of a network like the one that protection reads with, which saw the public images moved."""

CONTROLS = (PUBLIC_ALONE, READING_ALONE)
"""Arms that know the public images with all their labels, and nothing else."""

WORST_CASE, TEST_IMAGES, MALICIOUS_SERVER = "worst case", "test images", "malicious server"
"""What a number is by that is of no attack."""

Outcome = Literal["met", "missed", "open"]


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What models are worth on the test images.

    Attributes:
        f1: macro F1, at the threshold that validation images set; over seeds and the images of each.
        f1_of_seeds: the same of each training.
        auroc, balanced: area under the ROC curve and balanced accuracy (mean recall), over seeds.
    """

    f1: Measure
    f1_of_seeds: tuple[float, ...]
    auroc: Measure | None
    balanced: Measure


@dataclass(frozen=True, kw_only=True)
class Together:
    """What an arm's models and the reading network are worth where both answer (docs/protect.md).

    Attributes:
        worth: of both together.
        auroc_added: what the area under the ROC curve of that network gains, paired by seed.
        f1_lost: macro F1 against the first arm together with that network, paired by seed and image; None for that arm.
    """

    worth: Worth
    auroc_added: Measure | None
    f1_lost: Measure | None


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of images: the worst case, or what the attacks left that are believed.

    Attributes:
        by: ``worst case``, ``malicious server`` with its rounds, or the attacks, of how many updates each, and the
            round.
        above: PSNR above the mean image's, paired by image.
        closest: the same of what came closest to each image, of all attacks and rounds; of the worst case it is
            ``above`` itself. None where attacks were not compared.
        bounded: whether no attack on any round can leave more.
        found: share of images found first among the ``gallery`` of all clients' images.
    """

    by: str
    above: Measure
    ssim: Measure
    found: Measure
    gallery: int
    bounded: bool = False
    closest: Measure | None = None

    @property
    def too_much(self) -> bool:
        """Whether one of the bars is clearly missed: whatever is found besides changes nothing."""
        return "missed" in (against(self.above, LEFT), against(self.found, FOUND))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One arm with one model.

    Attributes:
        f1_lost: macro F1 against the first arm, paired by seed and image; None for that arm.
        auroc_lost: the same of the area under the ROC curve, paired by seed.
        together: the same beside the reading network; None without one, and of it.
        left: the worst case, or what a malicious server or attacks left, whichever is more.
        tried: what attacks left that are believed; None where the worst case bounds them.
        withheld: whether the worst case counts for nothing, since a planted break was not broken.
    """

    model: str
    arm: str
    worth: Worth | None = None
    f1_lost: Measure | None = None
    auroc_lost: Measure | None = None
    together: Together | None = None
    left: Left | None = None
    tried: Left | None = None
    withheld: bool = False
    on_front: bool = False

    @property
    def bounded(self) -> bool:
        """Whether no attack can leave more than what is known to be left."""
        return self.left is not None and self.left.bounded

    @property
    def stands(self) -> bool:
        """Whether what is left says something where attacks rebuild nothing without a defense either."""
        return self.left is not None and self.left != self.tried

    @property
    def gives_away(self) -> bool:
        """Whether attacks clearly leave more than the mean image: of the first arm, that they work here."""
        return self.tried is not None and against(self.tried.above, 0.0) == "missed"

    @property
    def known(self) -> bool:
        """Whether both what it costs and what it leaves were measured, or the latter clearly misses a bar already."""
        return self.left is not None and (self.f1_lost is not None or self.left.too_much)

    @property
    def hides(self) -> bool:
        """Whether images are clearly hidden, by both bars on what is left of them."""
        outcomes = self.outcomes()
        return outcomes["left"] == outcomes["found"] == "met"

    def outcomes(self) -> Mapping[str, Outcome]:
        """Of each of the three bars; open where the interval holds the bar, and where nothing bounds what is left."""
        above = against(None if self.left is None else self.left.above, LEFT)
        found = against(None if self.left is None else self.left.found, FOUND)
        return {
            "f1": against(self.f1_lost, F1_LOST),
            "left": above if self.bounded or above == "missed" else "open",
            "found": found if self.bounded or found == "missed" else "open",
        }


def against(measure: Measure | None, bar: float) -> Outcome:
    """Whether a number that should be at most ``bar`` is, by its whole interval.

    >>> from shadow_defense.metrics.confidence import Estimate
    >>> [against(Estimate(1.0, ends, 9), 2.0) for ends in ((0.5, 1.5), (0.5, 2.5), (2.1, 2.5))]
    ['met', 'open', 'missed']
    """
    if measure is None or measure.interval is None:
        return "open"
    low, high = measure.interval
    return "met" if high <= bar else "missed" if low > bar else "open"


@dataclass(frozen=True, kw_only=True)
class OfSize:
    """What attacks left of an arm's images at clients of one ``size``, in images."""

    model: str
    arm: str
    size: int
    left: Left


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm against the first one, paired by image.

    Attributes:
        by: the attack whose PSNR it is, or ``test images`` for macro F1.
        effect: Cohen's d_z; None where it has none.
        p: adjusted by Holm over the arms of the same model and ``by``.
        settled_by: images, of macro F1 trainings, whose interval would leave out 0 at this mean and spread; None where
            no number would.
    """

    model: str
    arm: str
    by: str
    measure: str
    difference: Measure
    effect: float | None
    p: float
    settled_by: int | None

    @property
    def shown(self) -> bool:
        """Whether its sign is clear after the correction."""
        return self.p <= 1 - LEVEL


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished result of a study: which numbers it is behind, and where it lies.

    Attributes:
        by: as numbers have it, but for the round, which stands beside.
        task: the name of its folder in ``store`` of the study's folder.
        misfit: of an attack, by which one is believed.
        believed: whether it is the attack that counts of this update.
    """

    model: str
    arm: str
    seed: int
    by: str
    task: str
    round: int | None = None
    client: str = ""
    misfit: float | None = None
    believed: bool = False


@dataclass(frozen=True, kw_only=True)
class EvidenceRecord(ComparisonRecord):
    """What ``evidence-<set>.json`` holds.

    Attributes:
        attacked: what the comparison of attacks says by itself.
        missing: how many results of each kind a longer run would add.
        victims: clients attacked of each seed by how many images they have.
        sizes: what attacks left by the size of the client; empty where all have one.
    """

    settings: tuple[Setting, ...]
    differences: tuple[Difference, ...]
    missing: Mapping[str, int]
    victims: Mapping[str, int]
    audited: int
    sizes: tuple[OfSize, ...] = ()
    attacked: tuple[str, ...] = ()

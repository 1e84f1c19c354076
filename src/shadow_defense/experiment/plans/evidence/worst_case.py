"""What a worst case leaves, and whether it decides about an arm before any attack."""

from __future__ import annotations

from shadow_defense.experiment.tasks.bounding import Bound
from shadow_defense.metrics.contrasts import within_seeds
from shadow_defense.metrics.intervals import share_interval
from shadow_defense.report.records.evidence import FOUND, LEFT, WORST_CASE, Left, against


def left_by(bound: Bound, seed: int, *, once: bool) -> Left | None:
    """What is left of the images of ``seed``; None where a planted break was not broken.

    Args:
        once: whether images are drawn once, so that no attack on any round can leave more.
    """
    if bound.withheld:
        return None
    pairs = zip(bound.closest["psnr"], bound.mean_image["psnr"], strict=True)
    above = within_seeds({seed: [own - mean for own, mean in pairs]})
    return Left(
        by=WORST_CASE if once else f"{WORST_CASE} of round 1",
        above=above,
        closest=above,
        ssim=within_seeds({seed: bound.closest["ssim"]}),
        bounded=once,
        found=share_interval(bound.found),
        gallery=bound.gallery,
    )


def decides(left: Left) -> bool:
    """Whether an arm clearly leaves more than it may: whatever attacks find besides changes nothing."""
    return "missed" in (against(left.above, LEFT), against(left.found, FOUND))

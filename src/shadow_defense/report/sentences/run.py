"""What a run's numbers say, whichever way they point."""

from __future__ import annotations

from collections.abc import Collection

from shadow_defense.report.kit.formatting import counted
from shadow_defense.report.records.run import BEST_REMOVER, Arm, RunRecord, Sight
from shadow_defense.report.records.scores import ScoreTable
from shadow_defense.report.sentences.differences import direction

NOT_TRIED = "not tried"


def run_verdict(record: RunRecord) -> list[str]:
    """Each attack against the mean image, then what is left to the attackers in each arm, and what it cost."""
    return [
        *(attack_sentence(table, record.arms[table.rows[0].arm].title) for table in record.pooled),
        *(arm_sentence(record, name) for name in record.arms),
    ]


def attack_sentence(table: ScoreTable, first: str) -> str:
    """Whether the attack on the ``first`` arm beats the mean image, in PSNR and SSIM, image by image."""
    own, blank = table.rows[0], table.rows[-1]
    pairs = [(own.metrics.get(key), blank.metrics.get(key)) for key in ("psnr_whole", "ssim_whole")]
    reached = [(rebuilt.mean, guess.mean) for rebuilt, guess in pairs if rebuilt is not None and guess is not None]
    if len(reached) < 2:
        return f"{table.attack}: no image was scored."
    (psnr, blank_psnr), (ssim, blank_ssim) = reached
    # The mean image's row is compared with the first: what it reaches less what the attack reaches.
    clear = all(direction(blank.difference.get(key)) < 0 for key in ("psnr_whole", "ssim_whole"))
    if clear:
        outcome = "clearly rebuilds more than the mean image shows: the leak is real"
    elif psnr > blank_psnr and ssim > blank_ssim:
        outcome = "rebuilds more than the mean image shows on average, and not clearly: more images would tell"
    else:
        outcome = (
            "does not beat the mean image: with this model, batch and budget it proves no leak, and what the arms "
            "below differ by says little about the defense"
        )
    numbers = f"PSNR {psnr:.1f} dB against {blank_psnr:.1f} dB, SSIM {ssim:.2f} against {blank_ssim:.2f}"
    return f"{first}: {table.attack} {outcome} ({numbers})."


def arm_sentence(record: RunRecord, name: str) -> str:
    """What is left to all attackers together in one arm, and what the arm costs."""
    arm, sights = record.arms[name], record.closest(name)
    left = exposure(sights.values())
    said = f"{arm.title}: {left}{_by_whom(sights.values())}."
    if name == next(iter(record.arms)):
        return said
    return f"{said} {cost_sentence(record, arm)}"


def exposure(sights: Collection[Sight]) -> str:
    """How many images can be recognised, in words.

    >>> exposure([])
    'not tried'
    """
    if not sights:
        return NOT_TRIED
    said = [sight.recognition for sight in sights]
    images, clear, partly = counted(len(said), "image"), said.count("recognisable"), said.count("partly")
    if clear:
        return f"{clear} of {images} recognisable" + (f", {partly} partly" if partly else "")
    return f"none of {images} recognisable" + (f", {partly} partly" if partly else "")


def _by_whom(sights: Collection[Sight]) -> str:
    """The closest of them all."""
    closest = max(sights, key=lambda sight: sight.share, default=None)
    if closest is None:
        return ""
    against = "" if closest.mean_image_ssim is None else f" where the mean image has {closest.mean_image_ssim:.2f}"
    when = "" if closest.attack == BEST_REMOVER else f" in round {closest.round}"
    return f" (closest: {closest.attack}{when}, SSIM {closest.ssim:.2f}{against})"


def cost_sentence(record: RunRecord, arm: Arm) -> str:
    """What one arm costs in F1 on the test images."""
    own, first = arm.test.get("f1_macro"), next(iter(record.arms.values())).test.get("f1_macro")
    if own is None or first is None:
        return "No macro F1 was measured."
    count, reference = record.data.test, next(iter(record.arms.values()))
    said = (
        f"Macro F1 {own:.3f} on {counted(count, 'test image')}, {100 * (own - first):+.1f} points against {first:.3f}"
    )
    auroc = reference.test.get("auroc")
    if len(record.data.classes) == 2 and auroc is not None and auroc < by_chance(count):
        return (
            f"{said}, which says nothing: the model of {reference.title} has not learnt the task (AUROC {auroc:.2f})."
        )
    return f"{said} (one training: no interval)."


def by_chance(count: int) -> float:
    """An AUROC that guesses pass in one case of twenty: 0.5 and 1.64 deviations of Mann and Whitney's U (1947).

    Args:
        count: of images, half of them of each class; where classes are less even, guesses pass it more often.

    >>> round(by_chance(40), 3)
    0.652
    """
    return 0.5 + 1.645 * ((count + 1) / (3 * count**2)) ** 0.5 if count else 1.0

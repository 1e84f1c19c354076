"""What the numbers say, in plain sentences, whichever way they point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shadow_defense.experiment.scoring import MEAN_IMAGE


def _mean(row: Mapping[str, Any], column: str) -> float | None:
    value = row["metrics"].get(column)
    return None if value is None else value["mean"]


def _change(row: Mapping[str, Any], column: str) -> tuple[float, bool | None] | None:
    """The mean difference to the first arm, and whether its interval leaves out zero (None: no interval)."""
    value = (row["difference"] or {}).get(column)
    if value is None:
        return None
    interval = value["interval"]
    return value["mean"], None if interval is None else not interval[0] <= 0 <= interval[1]


def _certainty(clear: bool | None) -> str:
    return {
        True: "the 95 % interval leaves out zero",
        False: "the 95 % interval includes zero, so it may be chance",
        None: "one image only, no interval",
    }[clear]


def attack_sentence(table: Mapping[str, Any]) -> str:
    """Whether the attack without defense beats the mean image, in PSNR and SSIM."""
    first, blank = table["rows"][0], table["rows"][-1]
    assert blank["arm"] == MEAN_IMAGE
    psnr, blank_psnr = _mean(first, "psnr_whole"), _mean(blank, "psnr_whole")
    ssim, blank_ssim = _mean(first, "ssim_whole"), _mean(blank, "ssim_whole")
    if psnr is None or blank_psnr is None or ssim is None or blank_ssim is None:
        return f"{table['attack']}: no image was scored."
    numbers = f"PSNR {psnr:.1f} dB against {blank_psnr:.1f} dB, SSIM {ssim:.2f} against {blank_ssim:.2f}"
    beats = psnr > blank_psnr and ssim > blank_ssim
    outcome = (
        "rebuilds more than the mean image shows: the leak is real"
        if beats
        else "does not clearly beat the mean image: with this model, batch and budget it proves no leak, and what the "
        "arms below differ by says little about the defense"
    )
    return f"Against '{first['arm']}', {table['attack']} {outcome} ({numbers})."


def defense_sentence(table: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What one arm changes for the attack, compared image by image with the first arm."""
    psnr, ssim = _change(row, "psnr_whole"), _change(row, "ssim_whole")
    if psnr is None or ssim is None:
        return f"'{row['arm']}' under {table['attack']}: no image was scored."
    helps = sum(mean < 0 and clear is not False for mean, clear in (psnr, ssim))
    outcome = {
        2: "lowers both PSNR and SSIM",
        1: "clearly lowers only one of PSNR and SSIM",
        0: "clearly lowers neither PSNR nor SSIM",
    }
    return (
        f"'{row['arm']}' {outcome[helps]} of {table['attack']}: PSNR {psnr[0]:+.1f} dB ({_certainty(psnr[1])}), "
        f"SSIM {ssim[0]:+.2f} ({_certainty(ssim[1])})."
    )


def utility_sentence(arm: str, measured: Mapping[str, Any], reference: Mapping[str, Any], images: int) -> str:
    """What one arm costs in F1 on the test images."""
    difference = 100 * (measured["f1_macro"] - reference["f1_macro"])
    return (
        f"'{arm}' reaches a macro F1 of {measured['f1_macro']:.3f} on {images} test images, {difference:+.1f} points "
        f"against the first arm's {reference['f1_macro']:.3f} (one training run: the difference has no interval)."
    )


def verdict(results: Mapping[str, Any]) -> list[str]:
    """All sentences: each attack, then each defense under it, then the cost in F1."""
    sentences = []
    for table in results["tables"]:
        if table["round"] is not None:
            continue
        sentences.append(attack_sentence(table))
        sentences += [defense_sentence(table, row) for row in table["rows"][1:-1]]
    arms = results["arms"]
    reference = next(iter(arms.values()))["test"]
    sentences += [
        utility_sentence(arm, entry["test"], reference, results["data"]["test"])
        for arm, entry in list(arms.items())[1:]
    ]
    return sentences

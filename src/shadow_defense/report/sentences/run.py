"""What a run's numbers say, whichever way they point."""

from __future__ import annotations

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.run import RunRecord
from shadow_defense.report.records.scores import Numbers, Row, ScoreTable


def run_verdict(record: RunRecord) -> list[str]:
    """Each attack, then each defense under it, then the cost in F1."""
    sentences = []
    for table in record.pooled:
        sentences.append(attack_sentence(table))
        sentences += [defense_sentence(table.attack, row) for row in table.rows[1:-1]]
    reference = next(iter(record.arms.values())).test
    return sentences + [
        utility_sentence(name, arm.test, reference, record.data.test) for name, arm in list(record.arms.items())[1:]
    ]


def attack_sentence(table: ScoreTable) -> str:
    """Whether the attack without defense beats the mean image, in PSNR and SSIM."""
    first, blank = table.rows[0], table.rows[-1]
    pairs = [(first.metrics.get(key), blank.metrics.get(key)) for key in ("psnr_whole", "ssim_whole")]
    reached = [(own.mean, guess.mean) for own, guess in pairs if own is not None and guess is not None]
    if len(reached) < 2:
        return f"{table.attack}: no image was scored."
    (psnr, blank_psnr), (ssim, blank_ssim) = reached
    outcome = (
        "rebuilds more than the mean image shows: the leak is real"
        if psnr > blank_psnr and ssim > blank_ssim
        else "does not clearly beat the mean image: with this model, batch and budget it proves no leak, and what the "
        "arms below differ by says little about the defense"
    )
    numbers = f"PSNR {psnr:.1f} dB against {blank_psnr:.1f} dB, SSIM {ssim:.2f} against {blank_ssim:.2f}"
    return f"Against '{first.arm}', {table.attack} {outcome} ({numbers})."


def defense_sentence(attack: str, row: Row) -> str:
    """What one arm changes for the attack, compared image by image with the first arm."""
    psnr, ssim = (row.difference.get(key) for key in ("psnr_whole", "ssim_whole"))
    if psnr is None or ssim is None:
        return f"'{row.arm}' under {attack}: no image was scored."
    lowered = sum(change.mean < 0 and change.clear() is not False for change in (psnr, ssim))
    outcome = {
        2: "lowers both PSNR and SSIM",
        1: "clearly lowers only one of PSNR and SSIM",
        0: "clearly lowers neither PSNR nor SSIM",
    }
    return (
        f"'{row.arm}' {outcome[lowered]} of {attack}: PSNR {psnr.mean:+.1f} dB ({_certainty(psnr)}), "
        f"SSIM {ssim.mean:+.2f} ({_certainty(ssim)})."
    )


def _certainty(change: Estimate) -> str:
    return {
        True: "the 95 % interval leaves out zero",
        False: "the 95 % interval includes zero, so it may be chance",
        None: "one image only, no interval",
    }[change.clear()]


def utility_sentence(arm: str, measured: Numbers, reference: Numbers, images: int) -> str:
    """What one arm costs in F1 on the test images."""
    own, first = measured.get("f1_macro"), reference.get("f1_macro")
    if own is None or first is None:
        return f"'{arm}': no macro F1 was measured."
    return (
        f"'{arm}' reaches a macro F1 of {own:.3f} on {images} test images, {100 * (own - first):+.1f} points against "
        f"the first arm's {first:.3f} (one training run: the difference has no interval)."
    )

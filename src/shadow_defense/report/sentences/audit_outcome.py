"""How one attack ended, in words: what came out, and whether a failure was one of search or of the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shadow_defense.report.records.audit import AttackEnd, Facts, RiskRow
from shadow_defense.report.sentences.audit_diagnosis import diagnose, not_given

EXPLAINED = 1e-3
"""Cosine distance up to which a reconstruction explains the update; the mean image alone often comes to 0.02."""


def judged(name: str, end: AttackEnd, facts: Facts, *, reads_statistics: bool) -> AttackEnd:
    """The end of the attack ``name`` with its verdict, and in sentences.

    A failure against a training that was only assumed says nothing of the update.

    Args:
        reads_statistics: whether the attack matches batch norm's statistics.
    """
    best = end.best
    rebuilt = None if best is None else _rebuilt(best)
    said = replace(end, rebuilt=rebuilt)
    unknown = rebuilt is None or (not rebuilt and not_given(facts))
    return replace(
        said,
        verdict="not known" if unknown else "rebuilt" if rebuilt else "not rebuilt",
        sentences=(_came_out(name, said, facts), *_why(name, said, facts, reads_statistics)),
    )


def _rebuilt(best: RiskRow) -> bool:
    """Whether an image came out that is recognisable: of many, one beats the mean image a bit."""
    return best.recognition == "recognisable"


def _closer(best: RiskRow) -> bool:
    """Whether the best reconstruction is more similar to its image than the mean image, which costs no update."""
    return best.mean_image_ssim is not None and (best.ssim or 0.0) > max(best.mean_image_ssim, 0.0)


def _came_out(name: str, end: AttackEnd, facts: Facts) -> str:
    best = end.best
    if best is None:
        return f"{name} ended ({_cosine(end)}). How close its images are to the client's, only --truth would tell."
    against = (
        ""
        if best.mean_image_ssim is None
        else f"; the mean of public images has SSIM {best.mean_image_ssim:.2f} without any update"
    )
    image, numbers = (best.image or 0) + 1, f"SSIM {best.ssim:.2f}, PSNR {best.psnr:.1f} dB{against}"
    if end.rebuilt:
        return f"{name} rebuilt image {image} ({numbers}): the update gives it away."
    shown, unknown = f"best, image {image}: {numbers}", not_given(facts)
    # A failure is read as protection, by people and by their scripts.
    blind = (
        f" The client's {' and '.join(unknown)} not being given, that says nothing of the update." if unknown else ""
    )
    if _closer(best):
        return f"{name} came closer than the mean image, and not close enough to recognise ({shown}).{blind}"
    failed = "comes closer than the mean image" if best.mean_image_ssim is not None else "is recognisable"
    return f"{name} failed: nothing that it rebuilt {failed} ({shown}).{blind}"


def _cosine(end: AttackEnd) -> str:
    mean_image = end.mean_image_distance
    against = "" if mean_image is None else f"; of the mean image in every place {1 - mean_image:.4f}"
    return f"cosine to the observed update {end.cosine:.4f}{against}"


def _why(name: str, end: AttackEnd, facts: Facts, reads_statistics: bool) -> Iterator[str]:
    failed = end.rebuilt is False
    if len(end.labels) < facts.samples:
        yield f"It sought {len(end.labels)} of {facts.samples} images: the steps were taken as one average step."
    explained = end.cosine >= 1 - EXPLAINED
    if failed and explained:
        yield (
            f"What it found explains the update ({_cosine(end)}) and is not the image: many images fit this "
            "update, and a better prior would help more than a longer search."
        )
    elif not explained and not end.rebuilt:
        yield (
            f"It found no image that explains the update ({_cosine(end)}): {_cause(facts)}. More "
            "--iterations or another attack may succeed: a failed search is no protection."
        )
    if failed and facts.batch_norm == "train" and facts.statistics_shared and not reads_statistics:
        yield "It does not read batch norm's statistics, which the update holds: try --attack gradinversion."
    plain = facts.optimiser in (None, "sgd") and not facts.like_signs
    if failed and facts.exact is not None and plain and name not in ("fully-connected-leak", "r-gap"):
        solver = "fully-connected-leak" if facts.exact == "first layer" else "r-gap"
        yield f"The architecture allows an exact solution: try --attack {solver}."


def _cause(facts: Facts) -> str:
    """Why a search may have ended without an image that explains the update."""
    effects = {reason.effect for reason in diagnose(facts)}
    if not_given(facts):
        return "the client may have trained otherwise than it was taken to, or the search did not get there"
    if "hides" in effects:
        return "either what hides the images (below) keeps any image from it, or the search did not get there"
    if "not known" in effects:
        return "the search did not get there, or something keeps it from it that cannot be measured"
    return "the search did not get there, and nothing in the update keeps it from it"

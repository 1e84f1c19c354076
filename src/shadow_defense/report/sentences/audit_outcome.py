"""How one attack ended, in words: what came out, and whether a failure was one of search or of the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shadow_defense.report.records.audit_facts import Facts
from shadow_defense.report.sentences.audit_diagnosis import diagnose, untold

Verdict = Literal["rebuilt", "not rebuilt", "not known"]
"""What an attack's end says of the update."""

EXPLAINED = 1e-3
"""Cosine distance up to which a reconstruction explains the update; the mean image alone often comes to 0.02."""

RECOGNISABLE = 0.5
"""SSIM from which on a reconstruction that beats the template counts as rebuilt: of many, one always beats it a bit."""


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

    def verdict(self, facts: Facts) -> Verdict:
        """What the attack's end says: a failure against a training that was only assumed says nothing."""
        if self.rebuilt:
            return "rebuilt"
        return "not known" if self.rebuilt is None or untold(facts) else "not rebuilt"


def judge(outcome: Outcome, facts: Facts) -> tuple[str, ...]:
    """One attack's end in sentences: what came out, and whether a failure was one of search or of the update."""
    return (_came_out(outcome, facts), *_why(outcome, facts))


def _came_out(outcome: Outcome, facts: Facts) -> str:
    if outcome.ssim is None:
        return (
            f"{outcome.attack} ended ({_cosine(outcome)}). How close its images are to the client's, only --truth "
            "would tell."
        )
    blank = (
        ""
        if outcome.template_ssim is None
        else f"; the mean of public images has SSIM {outcome.template_ssim:.2f} without any update"
    )
    numbers = f"SSIM {outcome.ssim:.2f}, PSNR {outcome.psnr:.1f} dB{blank}"
    if outcome.rebuilt:
        return f"{outcome.attack} rebuilt image {outcome.image} ({numbers}): the update gives it away."
    best = f"best, image {outcome.image}: {numbers}"
    unknown = untold(facts)
    # A failure is read as protection, by people and by their scripts.
    blind = f" The client's {' and '.join(unknown)} not being told, that says nothing of the update." if unknown else ""
    if outcome.closer:
        return f"{outcome.attack} came closer than the mean image, and not close enough to recognise ({best}).{blind}"
    failed = "comes closer than the mean image" if outcome.template_ssim is not None else "is recognisable"
    return f"{outcome.attack} failed: nothing that it rebuilt {failed} ({best}).{blind}"


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
        effects = {reason.effect for reason in diagnose(facts)}
        if untold(facts):
            cause = "the client may have trained otherwise than it was taken to, or the search did not get there"
        elif "hides" in effects:
            cause = "either what hides the images (below) keeps any image from it, or the search did not get there"
        elif "not known" in effects:
            cause = "the search did not get there, or something keeps it from it that cannot be measured"
        else:
            cause = "the search did not get there, and nothing in the update keeps it from it"
        yield (
            f"It found no image that explains the update ({_cosine(outcome)}): {cause}. More "
            "--iterations or another attack may succeed: a failed search is no protection."
        )
    if failed and facts.batch_norm == "train" and facts.statistics_shared and not outcome.reads_statistics:
        yield "It does not read batch norm's statistics, which the update holds: try --attack gradinversion."
    plain = facts.optimiser in (None, "sgd") and not facts.like_signs
    if failed and facts.exact is not None and plain and outcome.attack not in ("fully-connected-leak", "r-gap"):
        solver = "fully-connected-leak" if facts.exact == "first layer" else "r-gap"
        yield f"The architecture allows an exact solution: try --attack {solver}."

"""The record of an audit of one update, and the pictures that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from shadow_defense.report.records.audit_facts import Facts
from shadow_defense.report.records.reading import Settings
from shadow_defense.report.records.scores import Header


@dataclass(frozen=True, kw_only=True)
class RiskRow:
    """One reconstruction (from 0), the true image (from 0) that it was matched to, and how close it is to that.

    None where a value does not exist: no image left to match, no LPIPS, no template, or one whose SSIM is not above 0.

    Attributes:
        template_ssim: of the mean of public images to the true image.
        iip: 1 where the gallery image nearest to the reconstruction is the client's; ``hits``: how many of the k
            nearest are, by k.
    """

    reconstruction: int
    image: int | None
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    template_ssim: float | None = None
    rdlv: float | None = None
    iip: float | None = None
    hits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttackEnd:
    """How one attack ended.

    Attributes:
        verdict: ``rebuilt``, ``not rebuilt`` or ``not known``; ``rebuilt``: whether an image came out, None: unknown.
        k_iip: identifiability by the number of nearest images.
        labels: that the attack found or was given.
        distance: 1 - cosine of the update that the reconstructions cause and the observed one; ``template_distance``:
            the same for the mean of public images.
        notes: what it assumed.
    """

    sentences: tuple[str, ...]
    verdict: str = "not known"
    rebuilt: bool | None = None
    rows: tuple[RiskRow, ...] = ()
    k_iip: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    distance: float | None = None
    template_distance: float | None = None
    iterations: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


Effect = Literal["hides", "gives away", "limits the attack", "not known"]
"""What a reason means for the client. What limits only this attack protects from no better one; what is not known,
protects from none."""


@dataclass(frozen=True)
class Reason:
    """One thing about the update, and what it does."""

    effect: Effect
    sentence: str


@dataclass(frozen=True)
class Limit:
    """A measured value above which the audit fails."""

    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class AuditRecord(Header):
    """What ``audit.json`` holds."""

    seed: int
    subject: Settings
    model: Settings
    image_shape: tuple[int, int, int]
    told: Settings = field(default_factory=dict)
    local_training: Settings | None
    threat_models: Mapping[str, str]
    attack_settings: Mapping[str, Settings]
    facts: Facts
    attacks: Mapping[str, AttackEnd]
    diagnosis: tuple[Reason, ...]
    notes: tuple[str, ...]
    verdict: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    exceeded: tuple[str, ...] = ()
    not_known: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditPictures:
    """The images behind an audit, in [0, 1]: reconstructions by attack, the client's own, and the template."""

    reconstructions: Mapping[str, Float[Tensor, "n c h w"]]
    truths: Float[Tensor, "m c h w"] | None
    template: Float[Tensor, "c h w"] | None

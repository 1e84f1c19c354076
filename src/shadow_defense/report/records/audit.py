"""The record of an audit of one update: what was measured of it, how each attack ended, and the pictures with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.equal_steps import LIKE_SIGNS
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.recognition import Recognition, recognition, share_of_the_way
from shadow_defense.models.losses import LossName
from shadow_defense.report.records.reading import Settings
from shadow_defense.report.records.scores import Header

Exact = Literal["first layer", "chain"]
"""What allows an image to be solved for: a fully connected layer on the image, or a chain that R-GAP walks back."""

TOO_LONG = 3.0
"""Length of an update, relative to the parameters, that no training of a round has; 400 large steps came to 1.1."""


@dataclass(frozen=True)
class Facts:
    """All that :func:`shadow_defense.report.sentences.audit_diagnosis.diagnose` reads.

    Attributes:
        steps, batch_size: of the local training; None where it is not known.
        optimiser, loss: of the client, where they were given; None: not known.
        image_values: values of one image, channels included.
        update_values: values of the update that an attack matches.
        relative_norm: length of the update relative to that of the parameters it was added to.
        rounding: length of float32's rounding of the parameters, relative to the update's.
        zeros: share of the update's values that are exactly zero.
        zero_tensors: how many of ``tensors`` are zero altogether.
        equal: share of the values other than zero that are equally large (``attacks.equal_steps.equal_share``).
        noise: share of the last layer's update that cannot come from SGD on cross entropy (``impossible_share``);
            None where there is no such layer.
        noise_deviation: its standard deviation in each value, if it is the same in all.
        batch_norm: how clients use batch norm, where the model has it.
        statistics_shared: whether batch norm's running statistics are part of the update.
        hard: whether the model has ReLU-like kinks; ``pools``, ``drops``: max pooling, dropout that draws.
        exact: what allows an exact solution, for one image in one step.
        labels_known: whether the labels were given.
    """

    samples: int
    steps: int | None
    batch_size: int | None
    optimiser: OptimiserName | None
    loss: LossName | None
    image_values: int
    update_values: int
    tensors: int
    relative_norm: float
    rounding: float
    zeros: float
    zero_tensors: int
    equal: float
    noise: float | None
    noise_deviation: float | None
    batch_norm: Literal["train", "eval"] | None
    statistics_shared: bool
    hard: bool
    pools: bool
    drops: bool
    exact: Exact | None
    labels_known: bool

    @property
    def like_signs(self) -> bool:
        """Whether the update looks like the first step of Adam or RMSprop, or like signs alone."""
        return self.equal >= LIKE_SIGNS

    @property
    def plain(self) -> bool | None:
        """Whether the client trained by SGD on cross entropy; None: not known, or not what the update looks like."""
        if self.optimiser not in (None, "sgd") or self.loss not in (None, "ce"):
            return False
        if self.optimiser is None or self.loss is None or self.like_signs:
            return None
        return True


@dataclass(frozen=True, kw_only=True)
class RiskRow:
    """One reconstruction (from 0), the true image (from 0) that it was matched to, and how close it is to that.

    None where a value does not exist: no image left to match, no LPIPS, no mean image, or its SSIM is not above 0.

    Attributes:
        mean_image_ssim: of the mean of public images to the true image.
        iip: 1 where the gallery image nearest to the reconstruction is the client's; ``hits``: how many of the k
            nearest are, by k.
    """

    reconstruction: int
    image: int | None
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    mean_image_ssim: float | None = None
    rdlv: float | None = None
    iip: float | None = None
    hits: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Of the way from the mean image to the true one; None where that is not known."""
        return None if self.ssim is None else share_of_the_way(self.ssim, self.mean_image_ssim)

    @property
    def recognition(self) -> Recognition | None:
        """What the rule says (:mod:`shadow_defense.metrics.recognition`); None where it can say nothing."""
        return None if self.ssim is None else recognition(self.ssim, self.mean_image_ssim)


Verdict = Literal["rebuilt", "not rebuilt", "not known"]
"""What an attack's end says of the update."""


@dataclass(frozen=True, kw_only=True)
class AttackEnd:
    """How one attack ended.

    Attributes:
        rebuilt: whether an image came out; None: unknown.
        k_iip: identifiability by the number of nearest images.
        labels: that the attack found or was given, one for each image that it sought.
        distance: 1 - cosine of the update that the reconstructions cause and the observed one; ``mean_image_distance``:
            the same for the mean image in every place.
        notes: what it assumed.
    """

    sentences: tuple[str, ...] = ()
    verdict: Verdict = "not known"
    rebuilt: bool | None = None
    rows: tuple[RiskRow, ...] = ()
    k_iip: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    distance: float | None = None
    mean_image_distance: float | None = None
    iterations: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def cosine(self) -> float:
        """Of the update that the reconstructions cause and the observed one; 0 where there are none."""
        return 0.0 if self.distance is None else 1 - self.distance

    @property
    def best(self) -> RiskRow | None:
        """The reconstruction that is closest to its image; None without the truth."""
        scored = [(row.share, row) for row in self.rows if row.share is not None]
        return max(scored, key=lambda each: each[0])[1] if scored else None


Effect = Literal["hides", "gives away", "limits the attack", "not known"]
"""What a reason means for the client. What limits only this attack protects from no better one; what is not known,
protects from none."""


@dataclass(frozen=True)
class Reason:
    """One thing about the update, and what it does."""

    effect: Effect
    sentence: str


Status = Literal["red", "amber", "green", "unknown"]
"""What follows from an audit (:data:`shadow_defense.report.sentences.audit_assessment.RULES`)."""


@dataclass(frozen=True)
class Assessment:
    """What follows from an audit, in a line, and what to do next; ``not_tried``: other attacks, each in a line."""

    status: Status
    headline: str
    next_steps: tuple[str, ...]
    not_tried: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AuditRecord(Header):
    """What ``audit.json`` holds."""

    seed: int
    subject: Settings
    model: Settings
    image_shape: tuple[int, int, int]
    local_training: Settings | None
    threat_models: Mapping[str, str]
    attack_settings: Mapping[str, Settings]
    facts: Facts
    attacks: Mapping[str, AttackEnd]
    diagnosis: tuple[Reason, ...]
    assessment: Assessment
    notes: tuple[str, ...]
    verdict: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    exceeded: tuple[str, ...] = ()
    not_known: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuditPair(Header):
    """What ``pair.json`` holds: the audits of one client's update in two arms, by the arm's title."""

    seed: int
    audits: Mapping[str, AuditRecord]
    verdict: tuple[str, ...]


@dataclass(frozen=True)
class AuditPictures:
    """The images behind an audit, in [0, 1]: reconstructions by attack, the client's own, the mean image."""

    reconstructions: Mapping[str, Float[Tensor, "n c h w"]]
    truths: Float[Tensor, "m c h w"] | None
    mean_image: Float[Tensor, "c h w"] | None

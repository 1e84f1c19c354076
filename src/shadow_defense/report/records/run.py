"""The record of a run, and the pictures that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from shadow_defense.report.records.reading import Settings
from shadow_defense.report.records.scores import Attack, Data, Defense, Header, Numbers, Row, ScoreTable


@dataclass(frozen=True)
class Round:
    """One round of a training, counted from 0.

    Attributes:
        clients: each one's ``loss`` and what its defense measured, such as ``noise_rms``.
        test, validation: utility on those images; empty where the model was not tested.
    """

    round: int
    loss: float
    clients: Mapping[str, Numbers]
    test: Numbers = field(default_factory=dict)
    validation: Numbers = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arm(Defense):
    """One training with one defense."""

    history: tuple[Round, ...]

    @property
    def test(self) -> Numbers:
        """The final model on the test images."""
        return self.history[-1].test


@dataclass(frozen=True, kw_only=True)
class RunRecord(Header):
    """What ``results.json`` holds.

    Attributes:
        utilities: for each arm what its final model is worth.
        tables: not of :attr:`arms` alone, the last row of each is the mean image.
    """

    seed: int
    config: Settings
    data: Data
    arms: Mapping[str, Arm]
    attacks: Mapping[str, Attack]
    utilities: tuple[Row, ...]
    tables: tuple[ScoreTable, ...]
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pooled(self) -> list[ScoreTable]:
        """The tables over all attacked rounds, one an attack."""
        return [table for table in self.tables if table.round is None]


@dataclass(frozen=True)
class ArmPictures:
    """One image in one arm: what the attacker rebuilt, and what the defense did to the image.

    Attributes:
        reconstruction: in [0, 1].
        scores: the image's metrics (``psnr_whole``, ``ssim_whole``, ...).
        protected: the image that was trained on, in [0, 1], clamped; None where the batch was not changed.
        noise: what was added, in units of [0, 1] images, signed.
        vulnerability: N3, scaled to [0, 1]: bright where the shadow generator can rebuild the image.
        cam: Grad-CAM++ in [0, 1]: bright where the diagnosis looks.
        rebuilt: what the shadow generator rebuilt, in [0, 1].
    """

    reconstruction: Float[Tensor, "c h w"]
    scores: Mapping[str, float]
    protected: Float[Tensor, "c h w"] | None = None
    noise: Float[Tensor, "c h w"] | None = None
    vulnerability: Float[Tensor, "h w"] | None = None
    cam: Float[Tensor, "h w"] | None = None
    rebuilt: Float[Tensor, "c h w"] | None = None


@dataclass(frozen=True)
class Exhibit:
    """One of a client's images, (c, h, w) in [0, 1], in one attacked round (from 1), side by side over the arms."""

    sample_id: str
    client: str
    attack: str
    round: int
    class_name: str
    original: Float[Tensor, "c h w"]
    arms: Mapping[str, ArmPictures]

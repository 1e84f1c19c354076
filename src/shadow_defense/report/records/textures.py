"""The record of a calibration of textures: what each leaves at several strengths, and what a model on it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.comparison import Plane, PlanePoint
from shadow_defense.report.records.scores import MEAN_IMAGE, Header

PRIVACY = "rdlv"
"""What the plane is drawn by: the lower, the more private."""


@dataclass(frozen=True, kw_only=True)
class TextureRow:
    """One texture at one strength.

    Attributes:
        preset: of `protect`.
        weakest: whether it is the weakest strength that meets the target.
        leaks: by measure of a target, on public images.
        worth: on clean test images: macro F1, the same at the validation part's threshold, AUC; None: not measured.
    """

    preset: str
    strength: float
    weakest: bool
    leaks: Mapping[str, float]
    worth: Mapping[str, float | None]
    on_front: bool = False

    @property
    def arm(self) -> str:
        """Preset and strength."""
        return f"{self.preset} {self.strength:g}"


@dataclass(frozen=True, kw_only=True)
class TexturesRecord(Header):
    """What ``analytic.json`` holds.

    Attributes:
        trained: images that each model was trained on; ``public``: those on which leaks were measured.
        clean: worth of a model of the clean images, trained alike.
        not_reached: why a preset has no strength, by preset.
    """

    seed: int
    target: str
    trained: int
    public: int
    clean: Mapping[str, float | None]
    rows: tuple[TextureRow, ...]
    not_reached: Mapping[str, str]
    verdict: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[TextureRow, ...]:
        """The clean images, then every texture at each of its strengths."""
        clean = TextureRow(preset="clean images", strength=0.0, weakest=False, leaks={}, worth=self.clean)
        return (clean, *self.rows)

    @property
    def plane(self) -> Plane:
        """RDLV of the linear removal against macro F1."""
        points = tuple(
            PlanePoint(
                arm=row.arm,
                privacy=Estimate(row.leaks[PRIVACY], None, 1),
                utility=Estimate(row.worth["f1"] or 0.0, None, 1),
                on_front=row.on_front,
            )
            for row in self.rows
        )
        return Plane(
            model="one small model a row", attack="lmmse", metric=PRIVACY, points=points, baseline={MEAN_IMAGE: 0.0}
        )

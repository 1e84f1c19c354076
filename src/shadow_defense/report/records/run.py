"""The record of a run, and the pictures that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.reading import Settings, read_record
from shadow_defense.report.records.scores import Data, Header, Numbers, Row, ScoreTable


@dataclass(frozen=True)
class Round:
    """One round of a training, counted from 0; ``test`` is empty where the model was not tested.

    ``clients`` holds each one's ``loss`` and what its defense measured, such as ``noise_rms``.
    """

    round: int
    loss: float
    clients: Mapping[str, Numbers]
    test: Numbers = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training with one defense; ``share_bn`` is None for a model without batch norm."""

    defense: str
    summary: str
    acts_on: tuple[str, ...]
    history: tuple[Round, ...]
    test: Numbers
    preset: str | None = None
    options: Settings = field(default_factory=dict)
    share_bn: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord(Header):
    """What ``results.json`` holds; ``tables`` is not of :attr:`arms` alone, its last rows are baselines."""

    seed: int
    config: Settings
    data: Data
    arms: Mapping[str, Arm]
    tables: tuple[ScoreTable, ...]
    threat_models: Mapping[str, str] = field(default_factory=dict)
    attack_settings: Mapping[str, Settings] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pooled(self) -> list[ScoreTable]:
        """The tables over all attacked rounds, one an attack."""
        return [table for table in self.tables if table.round is None]

    @property
    def utilities(self) -> list[Row]:
        """A row for each arm: the final model on the test images, and its difference to the first arm's."""
        reference = next(iter(self.arms.values())).test
        return [
            Row(
                arm=name,
                images=0,
                metrics={},
                utility={key: Estimate(value, None, 1) for key, value in arm.test.items() if value is not None},
                utility_difference={
                    key: Estimate(value - other, None, 1)
                    for key, value in arm.test.items()
                    if position and value is not None and (other := reference.get(key)) is not None
                },
            )
            for position, (name, arm) in enumerate(self.arms.items())
        ]


def read_run(results: Mapping[str, object], source: str = "these results") -> RunRecord:
    """The record of a run, its rows with what each arm's model is worth. Raises :class:`RunError`."""
    record = read_record(RunRecord, results, source)
    worth = {row.arm: row for row in record.utilities} if record.arms else {}
    return replace(record, tables=tuple(_with_utility(table, worth) for table in record.tables))


def _with_utility(table: ScoreTable, worth: Mapping[str, Row]) -> ScoreTable:
    rows = (replace(row, utility=worth[row.arm].utility) if row.arm in worth else row for row in table.rows)
    return replace(table, rows=tuple(rows))


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
    scores: Mapping[str, float | None]
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

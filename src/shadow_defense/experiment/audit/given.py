"""What is told of an update that comes from anywhere; what is not given is what no attacker is granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shadow_defense.experiment.audit.reading import TensorSource


@dataclass(frozen=True)
class Given:
    """What is told of an update, by the command line or a program; None: not given.

    Attributes:
        model: what was trained: a preset or YAML file with ``model`` and ``data``, or a model of one's own.
        before: the global model before the round.
        after: the client's model after it, in place of ``update``.
        training: what else is known of the local training, by the settings' names.
        public: images with labels; their mean is the mean image where no ``template`` is given.
    """

    model: str
    overrides: tuple[str, ...] = ()
    update: TensorSource | None = None
    before: TensorSource | None = None
    after: TensorSource | None = None
    attacks: tuple[str, ...] = ("inverting-gradients",)
    threat_model: str | None = None
    iterations: int | None = None
    labels: tuple[int, ...] | None = None
    samples: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    template: Path | None = None
    public: str | None = None
    generator: Path | None = None
    truth: str | None = None
    gallery: str | None = None

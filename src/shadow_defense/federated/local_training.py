"""How a client trained in one round."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.federated.settings import TrainingSettings


@dataclass(frozen=True)
class LocalTraining:
    """How the client trained: what an attacker must know to simulate more than one step.

    Attributes:
        optimiser: None: not known.
        betas: of Adam and AdamW.
        epsilon: of Adam, AdamW and RMSprop.
        smoothing: alpha of RMSprop.
    """

    learning_rate: float
    batch_size: int
    steps: int
    batch_norm: str = "train"
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimiser: OptimiserName | None = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    smoothing: float = 0.99

    @classmethod
    def of(cls, training: TrainingSettings, round: int, batch_size: int, steps: int) -> LocalTraining:
        """What there is to know of a client's training in a round (0-based)."""
        return cls(
            training.learning_rate_at(round),
            batch_size,
            steps,
            training.batch_norm,
            training.momentum,
            training.weight_decay,
            training.optimiser,
            training.betas,
            training.epsilon,
            training.smoothing,
        )

    def without_decay(self) -> LocalTraining:
        """The same without weight decay."""
        return replace(self, weight_decay=0.0)

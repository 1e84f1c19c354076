"""What a user may say about the federated training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from shadow_defense.errors import ConfigError
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.settings import LossName

if TYPE_CHECKING:
    from shadow_defense.models.losses import ClassLoss

NEWER = ("clients_per_round", "optimiser", "betas", "epsilon", "smoothing", "loss", "label_smoothing")
"""Settings that the first trainings did not have."""


class TrainingSettings(BaseModel):
    """Rounds, local steps and their learning rate; the defaults are the paper's, but for the number of rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(10, ge=1, le=100_000, description="R, communication rounds")
    clients_per_round: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="clients drawn for each round, without replacement and anew every time, the others rest; null: all",
    )
    local_epochs: int = Field(1, ge=1, le=10_000, description="passes over a client's images in each round")
    optimiser: OptimiserName = Field("sgd", description="of the clients: sgd, adam, adamw or rmsprop; anew every round")
    learning_rate: float = Field(1e-2, gt=0, allow_inf_nan=False, description="of the clients' optimiser")
    momentum: float = Field(0.0, ge=0, lt=1, description="of the clients' SGD or RMSprop, within a round")
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="of the clients' optimiser; apart from the gradient in adamw"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="of Adam and AdamW, each in [0, 1)")
    epsilon: float = Field(1e-8, gt=0, allow_inf_nan=False, description="of Adam, AdamW and RMSprop")
    smoothing: float = Field(0.99, ge=0, lt=1, description="alpha of RMSprop")
    loss: LossName = Field(
        "ce", description="of the clients: ce (softmax cross entropy), bce (sigmoid, one-hot targets) or mse"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the loss ce")
    milestones: tuple[int, ...] = Field((40, 80), description="rounds after which the learning rate is multiplied")
    decay: float = Field(0.1, gt=0, le=1, description="factor of the learning rate at each milestone")
    batch_norm: str = Field(
        "train",
        pattern="^(train|eval)$",
        description="mode that clients train in: train (batch statistics, as usual) or eval (frozen statistics)",
    )
    evaluate_every: int = Field(
        1, ge=1, le=1_000_000, description="rounds between evaluations on validation and test images"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.momentum and self.optimiser in ("adam", "adamw"):
            raise ConfigError(
                f"training.momentum is of sgd and rmsprop: leave it at 0 with {self.optimiser}; see betas"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"training.betas = {list(self.betas)}: expected two numbers from 0 to below 1")
        if self.label_smoothing and self.loss != "ce":
            raise ConfigError(f"training.label_smoothing is of the loss ce: leave it at 0 with {self.loss}")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Without what is newer than the first trainings, where it is as it was then: those stay what they are."""
        written = write(self)
        for name in NEWER:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written

    def loss_function(self) -> ClassLoss:
        """The clients' loss."""
        from shadow_defense.models.losses import ClassLoss

        return ClassLoss(self.loss, self.label_smoothing)

    def steps(self, images: int, batch_size: int) -> int:
        """A client's steps in a round: all epochs' batches, the last of each as small as it comes out.

        >>> TrainingSettings(local_epochs=2).steps(images=5, batch_size=2)
        6
        """
        return -(-images // batch_size) * self.local_epochs

    def learning_rate_at(self, round: int) -> float:
        """The learning rate in round r (0-based): multiplied by ``decay`` at each milestone passed.

        >>> TrainingSettings().learning_rate_at(40)
        0.001
        """
        return self.learning_rate * self.decay ** sum(round >= milestone for milestone in self.milestones)

    def evaluates_after(self, round: int) -> bool:
        """Whether the global model is evaluated after round r (0-based): after every few, and after the last."""
        return (round + 1) % self.evaluate_every == 0 or round + 1 == self.rounds

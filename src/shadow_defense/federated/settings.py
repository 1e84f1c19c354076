"""What a user may say about the federated training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer


class TrainingSettings(BaseModel):
    """Rounds, local steps and their learning rate; the defaults are the paper's, but for the number of rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(10, ge=1, description="R, communication rounds")
    clients_per_round: int | None = Field(
        None,
        ge=1,
        description="clients drawn for each round, without replacement and anew every time, the others rest; null: all",
    )
    local_epochs: int = Field(1, ge=1, description="passes over a client's images in each round")
    learning_rate: float = Field(1e-2, gt=0, description="of the clients' SGD")
    momentum: float = Field(0.0, ge=0, lt=1, description="of the clients' SGD, within a round")
    weight_decay: float = Field(0.0, ge=0, description="of the clients' SGD")
    milestones: tuple[int, ...] = Field((40, 80), description="rounds after which the learning rate is multiplied")
    decay: float = Field(0.1, gt=0, le=1, description="factor of the learning rate at each milestone")
    batch_norm: str = Field(
        "train",
        pattern="^(train|eval)$",
        description="mode that clients train in: train (batch statistics, as usual) or eval (frozen statistics)",
    )
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations on validation and test images")

    @model_serializer(mode="wrap")
    def _written(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Without ``clients_per_round`` where all take part: trainings from before it existed stay what they are."""
        written = write(self)
        if self.clients_per_round is None:
            written.pop("clients_per_round", None)
        return written

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

"""The Defense contract: three places at which a client may protect what it is about to share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.models.functional import LossFunction
from shadow_defense.progress import Progress

Place = Literal["batch", "gradients", "update"]


@dataclass(frozen=True)
class Batch:
    """One local training batch: normalised images, labels, and a stable id for each sample."""

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]
    sample_ids: tuple[str, ...]


@dataclass(frozen=True)
class RoundContext:
    """What a defense may know of the round: the models, the loss, and where the training stands.

    Attributes:
        model: the local model as it stands, in the mode it trains in.
        global_state: this round's global parameters and buffers.
        round, rounds: r (0-based) and R.
        explain: the samples whose protection in this round is kept for the report.
    """

    model: nn.Module
    global_state: Mapping[str, Tensor]
    loss_fn: LossFunction
    round: int
    rounds: int
    learning_rate: float
    explain: frozenset[str] = frozenset()


class Defense:
    """No defense: the base of all others, each of which overrides the places it acts at.

    One object serves one client for the whole run and carries its state from round to round. A defense that
    cannot do its work raises, and no update leaves the client.

    Attributes:
        acts_on: the places at which this defense changes something, for tables and for the reader.
    """

    acts_on: ClassVar[frozenset[Place]] = frozenset()

    def prepare(
        self, images: Float[Tensor, "n c h w"], sample_ids: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        """Once, before the client's first round, with all of its normalised training images."""

    def begin_round(self, context: RoundContext) -> None:
        """Before the first step of every round."""

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        """The batch to train on, in place of the clean one."""
        return batch

    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        """The gradients for the optimiser's step, by parameter name; never the caller's tensors changed in place."""
        return gradients

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        """What is uploaded, in place of the raw difference of parameters and buffers."""
        return tensors

    def measurements(self) -> dict[str, float]:
        """Numbers about the round that just ended, for the curves of the report."""
        return {}

    def explanations(self) -> dict[str, Tensor]:
        """Pictures of the round that just ended, by name, where ``explain`` was asked for."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that later rounds need, as nested dicts of tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""

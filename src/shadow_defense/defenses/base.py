"""The Defense contract: three places at which a client may protect what it is about to share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.defenses.places import Place, TensorPlace
from shadow_defense.errors import DefenseError
from shadow_defense.models.batchnorm import batch_norm_names
from shadow_defense.models.functional import LossFunction
from shadow_defense.progress import Progress


@dataclass(frozen=True)
class Batch:
    """One local training batch: normalised images, labels, and a stable id for each sample.

    Labels are classes, or, after a defense that mixes images, a probability of each class.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"] | Float[Tensor, "n k"]
    sample_ids: tuple[str, ...]


@dataclass(frozen=True)
class RoundContext:
    """What a defense may know of the round: the models, the loss, and where the training stands.

    Attributes:
        model: the local model as it stands, in the mode it trains in.
        global_state: this round's global parameters and buffers; where clients keep their running statistics, those
            of public images stand in for them, so that the global model can be run in eval mode.
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
    """

    @property
    def acts_on(self) -> frozenset[Place]:
        """The places at which this defense changes something, for tables and for the reader."""
        return frozenset()

    def check_model(self, model: nn.Module) -> None:
        """Before any training; raises :class:`DefenseError` when ``model`` cannot carry this defense."""

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
        """What is uploaded, in place of the raw difference of parameters and buffers.

        Batch-norm tensors that stay with the client (``share_bn``) are not among ``tensors``: norms and noise are of
        what is sent.
        """
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


class ParameterDefense(Defense):
    """A defense that changes the trained parameters' tensors, and nothing else, at a place of the user's choice.

    At ``gradients`` the gradients of every local step pass through :meth:`protect`; at ``update`` the round's
    difference does, once. Batch norm's statistics and counters leave as they are: all published defenses that act on
    gradients know parameters only. At ``gradients`` all trained parameters are protected, also those that stay with the
    client (``share_bn``): they shape what it sends later. At ``update`` whatever else has changed is refused, and what
    has two names leaves as one.

    Attributes:
        step: how often :meth:`protect` was called in this round, for the names of random draws.
    """

    def __init__(self, place: TensorPlace) -> None:
        self.place: TensorPlace = place
        self.step = 0

    @property
    def acts_on(self) -> frozenset[Place]:
        return frozenset({self.place})

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        """New tensors in place of ``tensors`` (by parameter name); ``batch`` is given at ``gradients`` only."""
        raise NotImplementedError

    def begin_round(self, context: RoundContext) -> None:
        self.step = 0

    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        return self._protected(gradients, batch, context) if self.place == "gradients" else gradients

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        if self.place != "update":
            return tensors
        sent, names = _once(tensors, context.model)
        counted = batch_norm_names(context.model, "buffers")
        for name, tensor in tensors.items():
            # A teacher's moving average, or a layer that was not frozen after all, is the update over again.
            if name not in names and name not in counted and tensor.any():
                raise DefenseError(
                    f"tensor '{name}' of the update is no trained parameter and has changed all the same, and nothing "
                    "would protect it: leave it out of the state dict (persistent=False), or let the model say that it "
                    "is trained (requires_grad)"
                )
        protected = self._protected(sent, None, context)
        return {name: protected[names[name]] if name in names else tensor for name, tensor in tensors.items()}

    def _protected(
        self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext
    ) -> dict[str, Tensor]:
        protected = self.protect(tensors, batch, context)
        self.step += 1
        return protected


def _once(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every trained parameter of ``tensors`` once, and for each of its names that under which it is there.

    A parameter that two modules share is in a state dict under two names. Under the second it would leave as it is, or,
    with noise of its own, twice.
    """
    firsts: dict[tuple[object, ...], str] = {}
    names: dict[str, str] = {}
    # In the model's order, whatever the order of the caller's mapping: draws follow it.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and name in tensors:
            # Two parameters may lie on the same values, too.
            same = (parameter.data_ptr(), parameter.shape, parameter.stride()) if parameter.numel() else (name,)
            names[name] = firsts.setdefault(same, name)
    return {name: tensors[name] for name in firsts.values()}, names

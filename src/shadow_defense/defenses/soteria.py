"""Soteria (Sun et al., CVPR 2021): the columns of one fully connected layer that say most of the image are zeroed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.errors import DefenseError, unknown_name
from shadow_defense.models.functional import functional_call, training_mode

Denominator = Literal["magnitude", "signed"]


class SoteriaSettings(BaseModel):
    """Which layer, how much of it, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: str | None = Field(None, description="module name of the defended nn.Linear; null: the model's last one")
    percent: float = Field(60.0, ge=0, le=100, description="p, percent of the layer's columns that are REMOVED")
    epsilon: float = Field(0.1, ge=0, description="added to the denominator of the score, in units of the features")
    denominator: Denominator = Field(
        "magnitude",
        description="magnitude: |r| + epsilon; signed: r + epsilon, the published score, the same for features that "
        "are never negative (ReLU). Of features of either sign (GELU) signed removes far less than percent",
    )
    chunk: int = Field(
        4, ge=1, le=65_536, description="features differentiated at once: memory grows with it; 64 suits an accelerator"
    )
    place: TensorPlace = Field(
        "gradients",
        description="gradients: a mask for every local step, as published; update: one mask from all of the round's "
        "images at the global model, which keeps a column from passing in another step",
    )


SOTERIA_PRESETS: dict[str, dict[str, Any]] = {
    # The default of the published code of GGL and of Censor.
    "weak": {"percent": 10.0},
    # The authors' own quick start against image attacks. What the Shadow Defense paper
    # used is unknown.
    "paper": {},
    # The usual strong setting of comparisons, and Balunovic et al. (the Bayes-optimal attack).
    "strong": {"percent": 80.0},
}


def defended_layer(model: nn.Module, name: str | None = None) -> str:
    """The module name of the fully connected layer to defend: the one asked for, or the last nn.Linear.

    Raises:
        DefenseError: for a model without an nn.Linear, a name that is none, or a layer whose weight is not trained.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name}
    if not layers:
        raise DefenseError(
            f"Soteria prunes a fully connected layer and {type(model).__name__} has none: choose a model that ends in "
            "an nn.Linear, or another defense"
        )
    if name is not None and name not in layers:
        raise DefenseError(unknown_name("fully connected layer", name, layers))
    chosen = name if name is not None else list(layers)[-1]
    if not layers[chosen].weight.requires_grad:
        raise DefenseError(f"Soteria would prune layer '{chosen}', whose weight is frozen: train it or set another")
    return chosen


def layer_inputs(
    model: nn.Module, state: Mapping[str, Tensor], images: Float[Tensor, "n c h w"], layer: str
) -> Float[Tensor, "n k"]:
    """r(x), what enters ``layer`` when ``model`` runs in eval mode with the tensors of ``state``.

    In eval mode, because the batch statistics of train mode would mix the samples' Jacobians and move the running
    ones; the model is left as it was.

    Raises:
        DefenseError: when what enters is not one vector for each image.
    """
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        with training_mode(model, False), torch.enable_grad():
            functional_call(model, dict(state), (images,))
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].dim() != 2 or len(seen[0]) != len(images):
        given = ", ".join(str(tuple(features.shape)) for features in seen) or "nothing"
        raise DefenseError(
            f"Soteria expects one vector an image to enter layer '{layer}', once, and got {given} for {len(images)} "
            "images: set another layer"
        )
    return seen[0]


def feature_scores(
    model: nn.Module,
    state: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    layer: str,
    *,
    epsilon: float = 0.1,
    denominator: Denominator = "magnitude",
    chunk: int = 4,
) -> Float[Tensor, " k"]:
    """``s_i = sum_b ||d r_i(x_b) / d x_b||_2 / (|r_i(x_b)| + eps)`` (docs/defenses.md); the smallest are pruned.

    The published denominator, ``r_i + eps``, takes features to be 0 or more: ``signed``. K backward passes through
    the layers below, ``chunk`` of them at a time.

    Args:
        state: parameters and buffers by name; none of them is written to, nor differentiated.
        images: normalised, any number of them; the score is their sum.
        epsilon: in units of the features.

    Raises:
        DefenseError: when a score is not finite.
    """
    inputs = images.detach().clone().requires_grad_()
    features = layer_inputs(model, {name: tensor.detach() for name, tensor in state.items()}, inputs, layer)
    lengths = []
    for one_hots in torch.eye(features.shape[1], dtype=features.dtype, device=features.device).split(chunk):
        (jacobians,) = torch.autograd.grad(
            features,
            inputs,
            # One pass serves all samples: in eval mode none of them reaches the others' features.
            one_hots[:, None].expand(-1, len(images), -1),
            retain_graph=True,
            is_grads_batched=True,
        )
        lengths.append(jacobians.flatten(2).norm(dim=2))
    norms, values = torch.cat(lengths), features.detach().T
    below = (values if denominator == "signed" else values.abs()) + epsilon
    # A dead unit scores 0, also where its denominator is 0.
    scores = torch.where(norms == 0, 0.0, norms / below).sum(dim=1)
    if not torch.isfinite(scores).all():
        raise DefenseError(
            f"Soteria's score of a feature of layer '{layer}' is not finite: set epsilon above 0 (it is {epsilon:g}) "
            "and denominator to magnitude, or lower the learning rate"
        )
    return scores


def kept_columns(scores: Float[Tensor, " k"], percent: float) -> Bool[Tensor, " k"]:
    """False where ``|s_i| < q_p(s)``: the percentile is of the signed scores (docs/defenses.md).

    >>> kept_columns(torch.tensor([4.0, 1.0, 3.0, 2.0]), 50.0)
    tensor([ True, False,  True, False])
    """
    exact = scores.double()
    return exact.abs() >= torch.quantile(exact, percent / 100)


def prune_columns(tensors: Mapping[str, Tensor], layer: str, kept: Bool[Tensor, " k"]) -> dict[str, Tensor]:
    """The columns of ``layer``'s weight that are not ``kept`` set to zero; all other tensors, its bias too, copied."""
    weight = f"{layer}.weight"
    return {
        name: torch.where(kept, tensor, torch.zeros_like(tensor)) if name == weight else tensor.clone()
        for name, tensor in tensors.items()
    }


class SoteriaDefense(ParameterDefense):
    """Soteria at every step, or once a round with the scores of every image of the round summed at the global model.

    It is deterministic, its mask is visible as columns of zeros, and it leaves every other layer readable. With
    several local steps a column is hidden from the update only where every step pruned it.
    """

    def __init__(self, settings: SoteriaSettings) -> None:
        super().__init__(settings.place)
        self.settings = settings
        self._forget()

    def _forget(self) -> None:
        self._scores: Tensor | None = None
        self._scored: set[str] = set()
        self._pruned: list[float] = []

    def check_model(self, model: nn.Module) -> None:
        defended_layer(model, self.settings.layer)

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._forget()

    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        if self.place == "update":
            self._add_scores(batch, context)
        return super().protect_gradients(gradients, batch, context)

    def _add_scores(self, batch: Batch, context: RoundContext) -> None:
        # Later epochs bring the same images, and the global model stands still: each image counts once.
        fresh = [index for index, sample in enumerate(batch.sample_ids) if sample not in self._scored]
        if fresh:
            scores = self._score(context.global_state, batch.images[fresh], context.model)
            self._scores = scores if self._scores is None else self._scores + scores
            self._scored.update(batch.sample_ids)

    def _score(self, state: Mapping[str, Tensor], images: Tensor, model: nn.Module) -> Tensor:
        chosen = self.settings
        return feature_scores(
            model,
            state,
            images,
            defended_layer(model, chosen.layer),
            epsilon=chosen.epsilon,
            denominator=chosen.denominator,
            chunk=chosen.chunk,
        )

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        model = context.model
        if batch is not None:
            scores = self._score(dict([*model.named_parameters(), *model.named_buffers()]), batch.images, model)
        elif self._scores is not None:
            scores = self._scores
        else:
            raise DefenseError("Soteria saw no image in this round: an update cannot be protected without one")
        kept = kept_columns(scores, self.settings.percent)
        self._pruned.append(1 - kept.double().mean().item())
        return prune_columns(tensors, defended_layer(model, self.settings.layer), kept)

    def measurements(self) -> dict[str, float]:
        """The share of the layer's columns that were pruned, averaged over the round's steps."""
        return {"pruned_share": sum(self._pruned) / max(len(self._pruned), 1)}


SOTERIA = DefenseKind(
    "soteria",
    "columns of a fully connected layer that say most of the image zeroed (Sun et al. 2021)",
    SoteriaSettings,
    lambda settings, resources: SoteriaDefense(settings),
    SOTERIA_PRESETS,
    acts_on=("gradients", "update"),
)

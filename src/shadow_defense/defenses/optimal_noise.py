"""Optimal noise or pruning (arXiv:2411.03746): most where a gradient says much about the image for its size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.func import grad, jvp

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.noise import cosine
from shadow_defense.errors import DefenseError
from shadow_defense.models.functional import LossFunction, functional_call, split_state, training_mode
from shadow_defense.seeds import named_generator, standard_normal

Scope = Literal["parameter", "layer"]

SMALLEST_GRADIENT = 1e-8
"""Below it a gradient counts as this large."""

LARGEST_RATIO = 1e6
"""Of sensitivity to gradient: a gradient of zero must not take all of the noise."""


class OptimalNoiseSettings(BaseModel):
    """Noise or pruning, how much, and at what grain; it acts on the gradients of single steps only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["noise", "pruning"] = Field("noise", description="what is done where the weight is large")
    noise: float = Field(
        0.01, ge=0, description="k, root mean square of the noise's standard deviations, in units of the gradients"
    )
    percent: float = Field(50.0, ge=0, le=100, description="percent of all entries, of the largest weight, REMOVED")
    scope: Scope = Field(
        "parameter",
        description="parameter: a weight for each entry; layer: one for each tensor, from its norms (noise only)",
    )
    directions: int = Field(
        10,
        ge=1,
        le=1024,
        description="random directions from which sensitivity is estimated; each costs about two steps",
    )

    @model_validator(mode="after")
    def _consistent(self) -> OptimalNoiseSettings:
        if self.mode == "pruning" and self.scope == "layer":
            raise ValueError("pruning by layer would remove whole tensors: set scope=parameter, or mode=noise")
        return self


OPTIMAL_NOISE_PRESETS: dict[str, dict[str, Any]] = {
    # No levels are published. Ours: the noise levels of the defense noise, so that the same energy is compared, and
    # three shares for mode=pruning.
    "weak": {"noise": 1e-3, "percent": 20.0},
    "paper": {},
    "strong": {"noise": 0.1, "percent": 80.0},
}


def gradients_and_sensitivities(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    loss_fn: LossFunction,
    *,
    directions: int,
    draws: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """g, and ``J_i = ||d g_i / d x||`` of every entry, estimated as ``sqrt(mean over v of (d g_i / d x . v)^2)``.

    docs/defenses.md, with directions v from N(0, I) over all images of the batch together: J^2 is unbiased, with a
    relative standard deviation of sqrt(2 / directions). Forward over reverse: nothing is kept between directions.

    Args:
        model: in eval mode, where no statistics move.
        parameters, buffers: as :func:`split_state` gives them.
        images: normalised.
        directions: 1 or more.
        draws: CPU generator.
    """
    constants = {name: tensor.detach() for name, tensor in buffers.items()}

    def loss(trained: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return loss_fn(functional_call(model, {**trained, **constants}, (inputs,)), labels)

    trained = {name: tensor.detach() for name, tensor in parameters.items()}
    squares = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    gradients: dict[str, Tensor] = {}
    for _ in range(directions):
        direction = standard_normal(images.shape, draws, images.dtype).to(images.device)
        both = jvp(lambda inputs: grad(loss)(trained, inputs), (images,), (direction,))
        gradients, slopes = both[0], both[1]
        squares = {name: total + slopes[name].square() for name, total in squares.items()}
    return gradients, {name: (total / directions).sqrt() for name, total in squares.items()}


def disclosure_weights(
    gradients: Mapping[str, Tensor], sensitivities: Mapping[str, Tensor], scope: Scope = "parameter"
) -> dict[str, Tensor]:
    """``w_i = sqrt(min(J_i / max(|g_i|, 1e-8), 1e6))`` (docs/defenses.md).

    With ``layer`` J and |g| are the norms of a tensor, and all of its entries weigh the same.
    """
    weights = {}
    for name, gradient in gradients.items():
        sizes, slopes = gradient.abs(), sensitivities[name]
        if scope == "layer":
            sizes, slopes = sizes.norm().expand_as(gradient), slopes.norm().expand_as(gradient)
        weights[name] = (slopes / sizes.clamp_min(SMALLEST_GRADIENT)).clamp_max(LARGEST_RATIO).sqrt()
    return weights


def noise_deviations(weights: Mapping[str, Tensor], noise: float) -> dict[str, Tensor]:
    """``sigma_i = k w_i / rms(w)``, the root mean square over all entries of all tensors (docs/defenses.md).

    Weights that are all zero, of gradients that say nothing about the images, give k everywhere. Entries that happen
    to be near zero weigh most: of a small ConvNet 1 percent of the entries get half of the energy and the median
    entry a deviation of k / 2 or less; with weights by layer all get about k.

    >>> weights = {"w": torch.tensor([1.0, 2.0])}  # of J = (1, 4) and g = (1, 1)
    >>> noise_deviations(weights, 0.1)["w"]
    tensor([0.0632, 0.1265])
    """
    square = sum(float(weight.double().square().sum()) for weight in weights.values())
    root = math.sqrt(square / sum(weight.numel() for weight in weights.values()))
    return {name: noise / root * weight if root else torch.full_like(weight, noise) for name, weight in weights.items()}


def prune_largest(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], percent: float
) -> dict[str, Float[Tensor, "..."]]:
    """The entries of the largest weight set to zero: ``percent`` of all entries of all tensors, rounded down.

    Of all, as published: where more entries than are left have a gradient of zero anyway, nothing else is sent.
    """
    whole = torch.cat([weights[name].flatten() for name in tensors])
    removed = torch.zeros(len(whole), dtype=torch.bool, device=whole.device)
    removed[whole.topk(int(len(whole) * Fraction(str(percent)) / 100)).indices] = True
    parts = removed.split([tensor.numel() for tensor in tensors.values()])
    return {
        name: tensor.masked_fill(part.view(tensor.shape), 0)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


class OptimalNoiseDefense(ParameterDefense):
    """Noise, or zeros, at every step by the weights of that step's own batch.

    Not on the update: the weights are derivatives of what is shared by the images, and for the sum of several steps
    these lead through the whole of local training. g and J are both of the model in eval mode, so that they belong
    together: a bias before batch norm has no gradient in train mode, and the ratio would give it all of the noise.
    A ReLU that is off for the whole batch gets none: J and g are both zero behind it, and those zeros tell an
    attacker so: take smooth activations.

    Args:
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the noise.
    """

    def __init__(self, settings: OptimalNoiseSettings, seed: int) -> None:
        super().__init__("gradients")
        self.settings = settings
        self.seed = seed
        self._forget()

    def _forget(self) -> None:
        self._cosines: list[float] = []
        self._mean_squares: list[float] = []
        self._zero_shares: list[float] = []

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._forget()

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        assert batch is not None
        draws = named_generator(self.seed, "optimal-noise", context.round, self.step)
        weights = self._weights(batch, context, draws)
        if self.settings.mode == "pruning":
            sent = prune_largest(tensors, weights, self.settings.percent)
        else:
            sent = {}
            for name, deviation in noise_deviations(
                {name: weights[name] for name in tensors}, self.settings.noise
            ).items():
                normal = standard_normal(deviation.shape, draws, deviation.dtype).to(deviation.device)
                sent[name] = tensors[name] + deviation * normal
        self._measure(tensors, sent)
        return sent

    def _weights(self, batch: Batch, context: RoundContext, draws: torch.Generator) -> dict[str, Tensor]:
        model = context.model
        parameters, buffers = split_state(model, model)
        with training_mode(model, False):
            gradients, sensitivities = gradients_and_sensitivities(
                model,
                parameters,
                buffers,
                batch.images,
                batch.labels,
                context.loss_fn,
                directions=self.settings.directions,
                draws=draws,
            )
        wrong = next((name for name, tensor in sensitivities.items() if not torch.isfinite(tensor).all()), None)
        if wrong is not None:
            raise DefenseError(f"optimal-noise's sensitivity of '{wrong}' is not finite: lower the learning rate")
        return disclosure_weights(gradients, sensitivities, self.settings.scope)

    def _measure(self, before: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> None:
        entries = sum(tensor.numel() for tensor in before.values())
        change = sum(float((sent[name] - tensor).double().square().sum()) for name, tensor in before.items())
        self._mean_squares.append(change / entries)
        self._zero_shares.append(sum(int((tensor == 0).sum()) for tensor in sent.values()) / entries)
        self._cosines.append(cosine(before, sent))

    def measurements(self) -> dict[str, float]:
        """Root mean square of the change, share of zeros sent, cosine of sent with raw, over the round's steps."""
        steps = max(len(self._cosines), 1)
        return {
            "change_rms": math.sqrt(sum(self._mean_squares) / steps),
            "zero_share": sum(self._zero_shares) / steps,
            "cosine": sum(self._cosines) / steps,
        }


OPTIMAL_NOISE = DefenseKind(
    "optimal-noise",
    "most noise, or zeros, where a gradient says much about the image for its size (arXiv 2411.03746)",
    OptimalNoiseSettings,
    lambda settings, resources: OptimalNoiseDefense(settings, resources.seed_of("optimal-noise")),
    OPTIMAL_NOISE_PRESETS,
    acts_on=("gradients",),
)

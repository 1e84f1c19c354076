"""Noise on gradients or updates: the "DP" of most comparisons, which without clipping guarantees nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext, TensorPlace
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.seeds import named_generator, standard_exponential, standard_normal


class NoiseSettings(BaseModel):
    """How much noise, of which kind, and where. Independent noise at T steps adds up to sqrt(T) times its size.

    The presets are meant for gradients; for the same noise in the update of T plain SGD steps multiply the scale by
    learning_rate * sqrt(T).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    distribution: Literal["gaussian", "laplace"] = Field("gaussian", description="of the noise on every entry")
    scale: float = Field(
        0.01,
        ge=0,
        description="gaussian: standard deviation; laplace: b, whose standard deviation is b * sqrt(2). In units of "
        "the gradients or of the update",
    )
    place: TensorPlace = Field("gradients", description="gradients: at every local step; update: once a round")


NOISE_PRESETS: dict[str, dict[str, Any]] = {
    # What Sun et al. (DCS) use on CIFAR-10 and CelebA.
    "weak": {"scale": 1e-3},
    # The default of the published code of GGL and of Censor. What the Shadow Defense
    # paper used is unknown. The other common default is laplace with a scale of 0.1 (Soteria, Plato).
    "paper": {},
    # What Balunovic et al. (the Bayes-optimal attack) use.
    "strong": {"scale": 0.1},
}


def add_gaussian(tensors: Mapping[str, Tensor], sigma: float, draws: torch.Generator) -> dict[str, Tensor]:
    """``g + N(0, sigma^2)`` on every entry (docs/defenses.md), tensor by tensor in the mapping's order.

    Args:
        sigma: standard deviation, 0 or more, in the tensors' units.
        draws: CPU generator; whoever knows its seed can take the noise away again.
    """
    return {
        name: tensor + sigma * standard_normal(tensor.shape, draws, tensor.dtype).to(tensor.device)
        for name, tensor in tensors.items()
    }


def add_laplace(tensors: Mapping[str, Tensor], scale: float, draws: torch.Generator) -> dict[str, Tensor]:
    """``g + Laplace(0, scale)`` on every entry; the standard deviation is ``scale * sqrt(2)``.

    Args:
        scale: b, 0 or more, in the tensors' units.
        draws: CPU generator, as in :func:`add_gaussian`.
    """
    return {name: tensor + scale * _laplace(tensor, draws) for name, tensor in tensors.items()}


def _laplace(like: Tensor, draws: torch.Generator) -> Tensor:
    # The difference of two exponentials is Laplace; torch's own Laplace takes no generator.
    first, second = (standard_exponential(like.shape, draws, like.dtype) for _ in range(2))
    return (first - second).to(like.device)


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The cosine between two sets of tensors as one vector each; 0 where either is zero."""
    product = sum(float((first[name].double() * second[name].double()).sum()) for name in first)
    lengths = [sum(float(tensor.double().square().sum()) for tensor in each.values()) for each in (first, second)]
    return product / math.sqrt(lengths[0] * lengths[1]) if all(lengths) else 0.0


class NoiseDefense(ParameterDefense):
    """Fresh noise at every step or round.

    Args:
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the noise.
    """

    def __init__(self, settings: NoiseSettings, seed: int) -> None:
        super().__init__(settings.place)
        self.settings = settings
        self.seed = seed
        self._cosines: list[float] = []

    def begin_round(self, context: RoundContext) -> None:
        super().begin_round(context)
        self._cosines = []

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        draws = named_generator(self.seed, "noise", context.round, self.step)
        add = add_gaussian if self.settings.distribution == "gaussian" else add_laplace
        noisy = add(tensors, self.settings.scale, draws)
        self._cosines.append(cosine(tensors, noisy))
        return noisy

    def measurements(self) -> dict[str, float]:
        """The mean cosine between what was there and what was sent: what the noise is worth against this gradient."""
        return {"cosine": sum(self._cosines) / max(len(self._cosines), 1)}


NOISE = DefenseKind(
    "noise",
    "Gaussian or Laplace noise on gradients or update; no guarantee of privacy",
    NoiseSettings,
    lambda settings, resources: NoiseDefense(settings, resources.seed_of("noise")),
    NOISE_PRESETS,
    acts_on=("gradients", "update"),
    reads="nothing",
)

"""A variational block before a model's classifier, as in PRECODE (Scheliga et al., WACV 2022)."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import ModelError, unknown_name
from shadow_defense.seeds import named_generator, seed_for


def divergence_bits(mean: Float[Tensor, "n k"], deviation: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """KL(N(mean, deviation^2) || N(0, 1)) of each row: ``sum_k -(1 + 2 ln s - mu^2 - s^2) / (2 ln 2)``, in bits.

    Scheliga et al. 2022 (docs/defenses.md).

    >>> round(divergence_bits(torch.ones(1, 1), torch.ones(1, 1)).item(), 5)
    0.72135
    """
    return (mean.square() + deviation.square() - 1 - 2 * deviation.log()).sum(1) / (2 * math.log(2))


class _Differentiated:
    """Whether the graph of one forward pass has been differentiated into a graph of its own."""

    done = False


class _AddedPenalty(torch.autograd.Function):
    """The identity, whose gradient gets that of ``scale * divergence_bits(mean, deviation).sum()`` added to it.

    The penalty belongs to the training loss, which is what a forward pass is differentiated for first. Where that
    made a graph (``create_graph=True``), what comes later differentiates the gradient: it passes here once more, on
    its way down to the images, and nothing may be added to it. The first differentiation has to reach the block for
    that: it does where it is for all parameters. ``differentiated`` is shared by all levels of torch.func.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        mean: Tensor, deviation: Tensor, scale: float, differentiated: _Differentiated
    ) -> tuple[Tensor, Tensor]:
        return mean.view_as(mean), deviation.view_as(deviation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        mean, deviation, ctx.scale, ctx.differentiated = inputs
        ctx.save_for_backward(mean, deviation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        on_mean, on_deviation = gradients
        if ctx.differentiated.done:
            return on_mean, on_deviation, None, None
        ctx.differentiated.done = torch.is_grad_enabled()
        mean, deviation = ctx.saved_tensors
        scale = ctx.scale / math.log(2)
        return on_mean + scale * mean, on_deviation + scale * (deviation - 1 / deviation), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, Any]:
        return tangents[0].view_as(tangents[0]), tangents[1].view_as(tangents[1])


class VariationalBottleneck(nn.Module):
    """Features replaced by what a random code remembers of them (docs/defenses.md).

    ``mu, s = W_e h + b_e`` (s through softplus), ``z = mu + s eps``, ``h' = W_d z + b_d``, in training and in tests
    alike, as published. Training it adds ``weight * mean_b KL_b`` (:func:`divergence_bits`) to the loss: to its
    gradient, that is, since the training loop knows only the model's outputs; the loss that it prints is without.

    While the block's weights are differentiated, eps comes from torch's global state, as dropout's masks do, and the
    penalty is added, to every loss alike: it is not scaled with the loss. At all other times (evaluation, Grad-CAM++,
    Soteria's scores) eps is the same in every call, so that numbers come out the same twice, and nothing is added.

    Args:
        features: d, of what enters and leaves.
        width: K, numbers in the code.
        weight: beta, of the divergence, in units of the loss for each bit.
        seed: of eps outside training.
    """

    def __init__(self, features: int, width: int, weight: float, seed: int) -> None:
        super().__init__()
        self.weight = weight
        self.seed = seed
        self.encoder = nn.Linear(features, 2 * width)
        self.decoder = nn.Linear(width, features)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """h' for each row of features."""
        mean, raw = self.encoder(features).chunk(2, dim=1)
        deviation = F.softplus(raw)
        if torch.is_grad_enabled() and self.encoder.weight.requires_grad:
            mean, deviation = _AddedPenalty.apply(mean, deviation, self.weight / len(mean), _Differentiated())
            noise = torch.randn_like(mean)
        else:
            draws = named_generator(self.seed, "code outside training")
            noise = torch.randn(mean.shape, generator=draws, dtype=mean.dtype).to(mean.device)
        return self.decoder(mean + deviation * noise)


def insert_bottleneck(model: nn.Module, *, width: int, weight: float, seed: int, layer: str | None = None) -> nn.Module:
    """A copy of ``model`` with a :class:`VariationalBottleneck` before one of its linear layers.

    The layer becomes ``<layer>.classifier`` after a new ``<layer>.bottleneck``, whose first weights are those of
    PyTorch's linear layers and depend on ``seed`` alone; all other tensors keep their values.

    Args:
        layer: module name of an ``nn.Linear``; None takes the last in definition order.

    Raises:
        ModelError: when the model has no such layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name}
    if not layers:
        raise ModelError(
            f"a variational bottleneck goes before a fully connected layer and {type(model).__name__} has none: choose "
            "a model that ends in an nn.Linear"
        )
    chosen = list(layers)[-1] if layer is None else layer
    if chosen not in layers:
        raise ModelError(unknown_name("fully connected layer", chosen, layers))
    adapted = copy.deepcopy(model)
    classifier = adapted.get_submodule(chosen)
    assert isinstance(classifier, nn.Linear)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed_for(seed, "variational bottleneck"))
        bottleneck = VariationalBottleneck(classifier.in_features, width, weight, seed).to(classifier.weight)
    parent, _, name = chosen.rpartition(".")
    parts = OrderedDict([("bottleneck", bottleneck), ("classifier", classifier)])
    setattr(adapted.get_submodule(parent), name, nn.Sequential(parts))
    return adapted

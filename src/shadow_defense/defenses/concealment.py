"""The mathematics of DCS: images whose gradient is like another's, searched for, and how the two are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.models.functional import LossFunction, loss_gradients

MARGIN = 0.5
"""The least share of the clean gradient that a turned one gets added."""

DAMPING = 1e-3
"""Added to the clean gradient's squared norm before it divides."""

DECAYS = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the steps after which the search's learning rate falls to a tenth."""


def turn_towards(
    mixed: Mapping[str, Tensor], clean: Mapping[str, Tensor], *, margin: float = MARGIN, damping: float = DAMPING
) -> tuple[dict[str, Tensor], bool]:
    """``g~ + v g`` with ``v = max(margin, -<g, g~> / (||g||^2 + damping))`` where ``<g~, g> < 0``, else g~.

    DCS (docs/defenses.md); products and norms are over all tensors together. The damping leaves an obtuse angle
    where ||g||^2 is not far above it: ``<g~ + v g, g>`` is at least ``<g~, g> damping / (||g||^2 + damping)``, not 0.

    Returns:
        New tensors by name, and whether anything was turned.

    >>> turned, _ = turn_towards({"w": torch.tensor([-0.2, 1.0])}, {"w": torch.tensor([1.0, 0.0])})
    >>> turned["w"]
    tensor([0.3000, 1.0000])
    """
    product = sum(float((mixed[name].double() * tensor.double()).sum()) for name, tensor in clean.items())
    if product >= 0:
        return {name: tensor.clone() for name, tensor in mixed.items()}, False
    square = sum(float(tensor.double().square().sum()) for tensor in clean.values())
    factor = max(margin, -product / (square + damping))
    return {name: tensor + factor * clean[name] for name, tensor in mixed.items()}, True


def search_rate(step: int, steps: int, learning_rate: float) -> float:
    """The learning rate of one step (0-based) of a search of ``steps``.

    >>> [round(search_rate(step, 8, 0.1), 6) for step in (0, 2, 3, 5, 7)]
    [0.1, 0.1, 0.01, 0.001, 0.0001]
    """
    return learning_rate * 0.1 ** sum(step >= share * steps for share in DECAYS)


def image_distance(first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """The L2 distance of two images, averaged over pairs."""
    return torch.linalg.vector_norm((first - second).flatten(1), dim=1).mean()


def gradient_cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The cosine between two gradients, each as one vector of all its tensors; differentiable, 0 for zeros."""

    def norm(tensors: Sequence[Tensor]) -> Tensor:
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))

    product = torch.stack([(one * other).sum() for one, other in zip(first, second, strict=True)]).sum()
    # Each by itself: the product of two small norms would underflow.
    smallest = torch.finfo(product.dtype).tiny
    return product / norm(first).clamp_min(smallest) / norm(second).clamp_min(smallest)


def outputs_and_gradients(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    loss_fn: LossFunction,
    *,
    create_graph: bool = False,
) -> tuple[Float[Tensor, "n k"], dict[str, Tensor]]:
    """f(x) and :func:`loss_gradients` from one forward pass."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        seen.append(outputs)
        return loss_fn(outputs, wanted)

    gradients = loss_gradients(model, parameters, buffers, images, labels, loss, create_graph=create_graph)
    return seen[0], gradients


@dataclass(frozen=True)
class Concealment:
    """What a concealing image x~ of a private x is searched with, for a batch of pairs.

    Attributes:
        model: in eval mode: the reference's, and no sample reaches another's term.
        parameters, buffers: as :func:`split_state` gives them.
        images: x, normalised.
        labels: of the public images, which x~ keeps.
        outputs: f(x), detached.
        gradients: g(x) by name, detached.
        distance_decay, output_weight: lambda_x and lambda_z, 0 or more.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    loss_fn: LossFunction
    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    outputs: Float[Tensor, "n k"]
    gradients: Mapping[str, Tensor]
    distance_decay: float
    output_weight: float

    def objective(self, concealing: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """``1 - cos(g(x), g(x~)) + exp(-lambda_x mean ||x~ - x||) + lambda_z mean ||f(x~) - f(x)|| / ||f(x)||``.

        DCS (docs/defenses.md), where ``lambda_z epsilon`` is taken off: a constant, which no step of the search sees.
        ``g(x~)`` is the gradient at the public images' labels; differentiable in ``concealing``.
        """
        outputs, gradients = outputs_and_gradients(
            self.model, self.parameters, self.buffers, concealing, self.labels, self.loss_fn, create_graph=True
        )
        likeness = gradient_cosine([gradients[name] for name in self.gradients], list(self.gradients.values()))
        apart = torch.exp(-self.distance_decay * image_distance(concealing, self.images))
        lengths = torch.linalg.vector_norm(self.outputs, dim=1).clamp_min(torch.finfo(outputs.dtype).tiny)
        change = (torch.linalg.vector_norm(outputs - self.outputs, dim=1) / lengths).mean()
        return 1 - likeness + apart + self.output_weight * change

    def search(
        self, start: Float[Tensor, "n c h w"], *, steps: int, learning_rate: float, distance_limit: float
    ) -> tuple[Float[Tensor, "n c h w"], int]:
        """x~ by Adam on :meth:`objective` from ``start``, and the steps taken until the limit or the end.

        As published, the pixels are not held in the range of real images.
        """
        concealing = start.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([concealing], lr=learning_rate)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = search_rate(step, steps, learning_rate)
            (concealing.grad,) = torch.autograd.grad(self.objective(concealing), concealing)
            optimiser.step()
            if image_distance(concealing.detach(), self.images) > distance_limit:
                return concealing.detach(), step + 1
        return concealing.detach(), steps

    def mixed_gradients(
        self, concealing: Float[Tensor, "n c h w"], labels: Tensor, mixing: float
    ) -> dict[str, Float[Tensor, "..."]]:
        """The gradient of ``[lambda_y CE(x~, y_public) + (1 - lambda_y) CE(x~, y) + CE(x, y)] / 3``.

        Divided by 2 where one weight is 0 (docs/defenses.md). The weights add up to 2, half of them the private
        images'; divided by 3, as published, steps are a third shorter than they would be otherwise.

        Args:
            labels: y, of the private images.
            mixing: lambda_y, 0 to 1.
        """

        def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
            concealed, private = outputs.split(len(self.images))
            public_term, own_term = self.loss_fn(concealed, self.labels), self.loss_fn(concealed, wanted)
            whole = mixing * public_term + (1 - mixing) * own_term + self.loss_fn(private, wanted)
            return whole / (3 if 0 < mixing < 1 else 2)

        both = torch.cat([concealing, self.images])
        return loss_gradients(self.model, self.parameters, self.buffers, both, labels, loss)

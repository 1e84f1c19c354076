"""The best linear remover, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.remover import Removal, Remover
from shadow_defense.protection.linear_view import LinearView
from shadow_defense.protection.whitening import Whitening

LEAST_REST = 1e-12
"""Variance outside of the directions that stands for none."""


@dataclass(frozen=True)
class LinearRemoval:
    """LMMSE of an image from one or several looks at it, ``sum_i K_i (w_i' - offset_i)`` in whitened coordinates.

    With ``P = I + sum_i A_i^T S_i^-1 A_i`` (the clean image has covariance I), ``K_i = P^-1 A_i^T S_i^-1``; the error
    has covariance ``P^-1`` (docs/protect.md). Outside of the directions the same for each number.

    Attributes:
        gains: K_i.
        error: P^-1.
        outside_gains: of what lies outside of the directions.
        outside_error: variance that stays along each of these.
    """

    whitening: Whitening
    views: tuple[LinearView, ...]
    gains: tuple[Float[Tensor, "k k"], ...]
    error: Float[Tensor, "k k"]
    outside_gains: tuple[float, ...]
    outside_error: float

    def coordinates(self, looks: Sequence[Float[Tensor, "n c h w"]]) -> Float[Tensor, "n k"]:
        """The clean images' coordinates, estimated from one protected image in each look."""
        found = [
            (self.whitening.coordinates(look) - view.offset) @ gain.T
            for look, view, gain in zip(looks, self.views, self.gains, strict=True)
        ]
        return torch.stack(found).sum(dim=0)

    def images(self, looks: Sequence[Float[Tensor, "n c h w"]]) -> Float[Tensor, "n c h w"]:
        """The clean images, clamped to [0, 1]."""
        inside = self.whitening.images(self.coordinates(looks)).flatten(1)
        for look, gain in zip(looks, self.outside_gains, strict=True):
            if gain:
                inside = inside + gain * self.whitening.outside(look)
        return inside.unflatten(1, self.whitening.shape).clamp(0, 1)

    def mean_squared_error(self) -> float:
        """The error of a pixel that no linear remover goes below on average, with this mean and covariance."""
        whitening = self.whitening
        dimension = len(whitening.mean)
        along = float((self.error.diagonal() * whitening.deviations.square()).sum())
        return (along + (dimension - whitening.count) * self.outside_error) / dimension


def linear_removal(whitening: Whitening, views: Sequence[LinearView]) -> LinearRemoval:
    """The LMMSE of an image that is seen once in each of ``views``, under independent draws."""
    count = whitening.count
    informed = [torch.linalg.solve(view.noise.double(), view.gain.double()).T for view in views]
    precision = torch.eye(count, dtype=torch.float64)
    for part, view in zip(informed, views, strict=True):
        precision += part @ view.gain.double()
    error = torch.linalg.inv(precision)
    rest = max(whitening.rest, LEAST_REST)
    outside_error = 1 / (1 / rest + sum(view.outside_gain**2 / view.outside_noise for view in views))
    return LinearRemoval(
        whitening,
        tuple(views),
        tuple((error @ part).float() for part in informed),
        error.float(),
        tuple(outside_error * view.outside_gain / view.outside_noise for view in views),
        outside_error,
    )


class LinearRemover(Remover):
    """LMMSE with the mean and covariance of public images; its doubt is the length of the estimate's coordinates."""

    name = "lmmse"

    def __init__(self, whitening: Whitening, view: LinearView) -> None:
        self.removal = linear_removal(whitening, [view])

    def remove(self, protected: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Removal:
        return Removal(self.removal.images([protected]), self.removal.coordinates([protected]).square().sum(dim=1))

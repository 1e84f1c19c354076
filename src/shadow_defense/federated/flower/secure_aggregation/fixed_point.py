"""An update as a row of numbers on a grid, so that Flower's SecAgg+ sums it without losing or drawing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from shadow_defense.errors import UpdateError
from shadow_defense.federated.flower.secure_aggregation.masks import MODULUS
from shadow_defense.federated.update import ALL_CLIENTS, ModelUpdate

LIMIT = 64.0
"""The largest change of a value that can be summed; integer counters may change by :data:`COUNTS` times as much."""

COUNTS = 4096
"""Counters are divided by this in the row, so that they fit beside the small changes of weights."""

LEVELS = 2**30
"""Steps of the grid: the most that Flower's 32-bit integers hold."""

HEAD = 2
"""Entries before the tensors: the number of images, and of steps."""


@dataclass(frozen=True)
class FixedPoint:
    """The grid that ``clients`` clients round to, of which the largest has at most ``most_images`` images.

    A client's row is ``(n / most_images) * (1, steps / COUNTS, U)``, tensors in the order of their names, which is the
    same on both sides and after a resumption. Its values lie on a grid of :attr:`step` in [-limit, limit], which
    Flower maps to the integers 0 to :data:`LEVELS` exactly: its stochastic rounding has nothing to round. Number of
    images and of steps are in the sum only, and never in the clear as in Flower's own form.

    Args:
        most_images: a power of two, so that ``n / most_images`` is on the grid.
    """

    clients: int
    most_images: int
    limit: float = LIMIT

    def __post_init__(self) -> None:
        if self.clients < 2:
            raise UpdateError(
                f"secure aggregation was asked for with {self.clients} client: the average of one is its update; "
                "take at least 2"
            )
        if self.clients * LEVELS >= MODULUS:
            raise UpdateError(
                f"{self.clients} clients are too many for one secure sum: expected fewer than {MODULUS // LEVELS}"
            )
        if self.most_images < 1 or self.most_images & (self.most_images - 1):
            raise UpdateError(f"the largest number of images is given as {self.most_images}: expected a power of two")

    @property
    def step(self) -> float:
        return 2 * self.limit / LEVELS

    def largest_error(self, samples: int, clients: int) -> float:
        """How far the average over ``clients`` with ``samples`` images in all can be off: half a step from each.

        ``clients * (step / 2) / (samples / most_images)``, before it is rounded to the tensor's own type; of a counter
        :data:`COUNTS` times as much.
        """
        return clients * self.step / 2 * self.most_images / samples

    def encode(self, update: ModelUpdate) -> Float64[np.ndarray, " row"]:
        """What a client adds to the sum.

        Raises:
            UpdateError: naming what would not fit; clipping it, as Flower does, would be wrong in silence.
        """
        if update.steps > COUNTS * self.limit:
            raise UpdateError(
                f"{update.client} took {update.steps} steps: a secure sum holds at most {COUNTS * self.limit:.0f}"
            )
        if update.samples > self.most_images:
            raise UpdateError(
                f"{update.client} has {update.samples} images and the server expects at most {self.most_images}: "
                "raise most_images on the server"
            )
        for name, tensor in update.tensors.items():
            largest = float(_scaled(tensor).abs().max()) if tensor.numel() else 0.0
            # Written so that NaN is refused too.
            if not largest <= self.limit:
                raise UpdateError(
                    f"a change of {largest:.3g} in tensor '{name}' of {update.client} does not fit a secure sum: "
                    f"expected at most {self.limit:.3g}; lower the learning rate, clip the update, or set share_bn to "
                    "parameters if it is a running statistic"
                )
        head = torch.tensor([1.0, update.steps / COUNTS], dtype=torch.float64)
        row = torch.cat([head, *(_scaled(update.tensors[name]).flatten() for name in sorted(update.tensors))])
        row *= update.samples / self.most_images
        return (torch.round(row / self.step) * self.step).numpy()

    def decode(self, total: Float64[np.ndarray, " row"], like: Mapping[str, Tensor], round: int) -> ModelUpdate:
        """The average update of all clients from the sum of their rows: FedAvg's, to :meth:`largest_error`.

        Integer tensors are rounded, as the plain average rounds them; steps are the images' mean.

        Raises:
            UpdateError: where the sum is not of this model, or beyond what clients may send.
        """
        names = sorted(like)
        sizes = [like[name].numel() for name in names]
        row = torch.from_numpy(total.copy())
        samples = int(torch.round(row[0] * self.most_images)) if len(row) else 0
        if len(row) != HEAD + sum(sizes) or samples < 1:
            raise UpdateError("the secure sum is not one of updates of this model: use one configuration everywhere")
        mean = row / (samples / self.most_images)
        # Half a step is added by each client's rounding.
        most = self.limit + self.largest_error(samples, self.clients)
        if samples > self.clients * self.most_images or not mean[1] >= 0 or not mean.abs().max() <= most:
            raise UpdateError(
                "the secure sum holds values that no client of this package sends: one sent something else, and under "
                "masks nobody can tell which; nothing is averaged"
            )
        parts = dict(zip(names, mean[HEAD:].split(sizes), strict=True))
        tensors = {name: _unscaled(parts[name], tensor.dtype).view(tensor.shape) for name, tensor in like.items()}
        return ModelUpdate(tensors, samples, int(torch.round(mean[1] * COUNTS)), round, ALL_CLIENTS)


def power_of_two_from(count: int) -> int:
    """The smallest power of two that is at least ``count``, which is positive.

    >>> [power_of_two_from(count) for count in (1, 3, 4, 5)]
    [1, 4, 4, 8]
    """
    return 1 << (count - 1).bit_length()


def _scaled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.double() / COUNTS


def _unscaled(part: Tensor, dtype: torch.dtype) -> Tensor:
    return part.to(dtype) if dtype.is_floating_point else (part * COUNTS).round().to(dtype)

"""When a generator was trained long enough: how like its images are to public ones that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.interface import Generator
from shadow_defense.seeds import named_generator

ONE_IN = 8
"""The share of public images that is held out."""

LEAST, MOST = 4, 256
"""Held-out images that say something, and that are enough."""

SAMPLES = 512
"""Images of the generator that they are compared with, of the same codes every time."""


def hold_out(public: UInt8[Tensor, "n c h w"]) -> tuple[UInt8[Tensor, "k c h w"], UInt8[Tensor, "m c h w"]]:
    """The public images to train on, and the held-out ones: every eighth, at most 256.

    Raises :class:`GeneratorError` where there are too few.
    """
    held = torch.arange(len(public)) % ONE_IN == 0
    held &= held.cumsum(0) <= MOST
    if int(held.sum()) < LEAST:
        raise GeneratorError(
            f"{len(public)} public images are too few to hold some out: give {ONE_IN * LEAST} or more, or "
            "generator.patience=null"
        )
    return public[~held], public[held]


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """``2 E ||x - y|| - E ||x - x'|| - E ||y - y'||`` (Szekely and Rizzo 2013), without bias: 0 for one distribution.

    Of samples, so that it may come out below 0.
    """
    within = sum(float(torch.cdist(each, each).sum()) / (len(each) * (len(each) - 1)) for each in (x, y))
    return 2 * float(torch.cdist(x, y).mean()) - within


class HeldOut:
    """Ends a training whose images come no nearer to held-out ones, and keeps the weights that came nearest.

    How near they came is in the training's journal, as ``held_out`` of each checkpoint's entry.

    Args:
        images: in [-1, 1], of the generator's size.
        patience: checkpoints without a nearer one after which the training ends.
        seed: of the codes of the images that they are compared with.

    Attributes:
        best: the state of the nearest generator; empty before the first checkpoint.
    """

    def __init__(self, images: Float[Tensor, "n c s s"], patience: int, seed: int) -> None:
        self.images, self.patience, self.seed = images, patience, seed
        self.best: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure(self, generator: Generator, journal: Sequence[dict[str, int | float]]) -> None:
        """Write into the journal's last entry how near the generator comes, and keep it if it is the nearest."""
        codes = torch.randn(SAMPLES, generator.z_dim, generator=named_generator(self.seed, "held out"))
        drawn = torch.cat([generator(part.to(self.images)) for part in codes.split(len(self.images))])
        journal[-1]["held_out"] = energy_distance(self.images.flatten(1), drawn.flatten(1))
        if checkpoints_since_best(journal) == 0:
            self.best = {name: tensor.clone() for name, tensor in generator.state_dict().items()}

    def ends(self, journal: Sequence[Mapping[str, int | float]]) -> bool:
        return checkpoints_since_best(journal) >= self.patience


def checkpoints_since_best(journal: Sequence[Mapping[str, int | float]]) -> int:
    """How many checkpoints came after that of the least ``held_out``; 0 before the first.

    >>> checkpoints_since_best([{"held_out": 3.0}, {"held_out": 1.0}, {"held_out": 2.0}])
    1
    """
    found = [entry["held_out"] for entry in journal]
    return len(found) - 1 - found.index(min(found)) if found else 0

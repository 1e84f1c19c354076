"""Which remover to believe for an image, learnt from the attacker's own images and never from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.remover import Removal

BINS = 4
"""Into which each remover's doubts are sorted, as many of the attacker's own images in each."""


@dataclass(frozen=True)
class Rule:
    """The error to expect of each remover at each doubt, measured on images whose truth the attacker has.

    Attributes:
        ends: by remover, the doubts at which bins end.
        errors: by remover, the mean squared error in each bin.
    """

    ends: Mapping[str, Float[Tensor, " b"]]
    errors: Mapping[str, Float[Tensor, " c"]]

    def choose(self, removals: Mapping[str, Removal]) -> Int64[Tensor, " n"]:
        """For each image the place in ``removals`` of the remover with the least error to expect."""
        expected = [
            self.errors[name][torch.bucketize(removal.doubt, self.ends[name])] for name, removal in removals.items()
        ]
        return torch.stack(expected).argmin(dim=0)


def learn_rule(removals: Mapping[str, Removal], truths: Float[Tensor, "n c h w"]) -> Rule:
    """Bins of equal size by doubt, and the mean squared error in each."""
    ends, errors = {}, {}
    for name, removal in removals.items():
        wrong = squared_errors(removal.estimates, truths)
        inner = torch.linspace(0, 1, BINS + 1)[1:-1]
        ends[name] = removal.doubt.quantile(inner)
        place = torch.bucketize(removal.doubt, ends[name])
        # An empty bin (equal doubts) has the error of all.
        errors[name] = torch.stack(
            [wrong[place == each].mean() if (place == each).any() else wrong.mean() for each in range(BINS)]
        )
    return Rule(ends, errors)


def chosen_estimates(removals: Mapping[str, Removal], places: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """The estimate of the remover in ``places`` for each image."""
    return torch.stack([each.estimates for each in removals.values()])[places, torch.arange(len(places))]


def squared_errors(estimates: Float[Tensor, "n c h w"], truths: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Mean squared error of each image."""
    return (estimates - truths).square().mean(dim=(1, 2, 3))

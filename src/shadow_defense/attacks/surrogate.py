"""A model between those before and after a client's round, whose one gradient stands for many local steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

EVERY = 10
"""Calls of :meth:`Surrogate.follow` between two looks to both sides."""

FIRST_STEP, LAST_STEP = 0.1, 0.01
"""How far it looks at first, and at last: a place is worth no more digits."""


class Surrogate:
    """``theta_s = theta_0 + s U*``, s in [0, 1], at which one gradient of all images is compared with the update U*.

    What a client of many steps sends is a sum of gradients along its way from the model before to the model after. One
    gradient at the beginning points elsewhere than that sum, one taken between the two much less so (Zhu, Yao and
    Blaschko 2023, "Surrogate model extension", who find s together with the image). Here s is moved while the images
    are sought, to where the gradient of the present ones fits best: of s and a step to either side, every
    :data:`EVERY` iterations, with half the step where s itself is best.

    Args:
        parameters: leaves at theta_0, which are moved in place.
        update: of the parameters that were sent; the others stay where they are.
    """

    def __init__(self, parameters: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> None:
        self._leaves = {name: parameters[name] for name in update}
        self._before = {name: tensor.detach().clone() for name, tensor in self._leaves.items()}
        self._update = update
        self._calls, self._step = 0, FIRST_STEP
        self.move_to(0.5)

    @property
    def place(self) -> float:
        """s: 0 at the model before the round, 1 at the model after it."""
        return self._place

    def move_to(self, place: float) -> None:
        """Put the parameters at ``place``."""
        self._place = place
        with torch.no_grad():
            for name, leaf in self._leaves.items():
                leaf.copy_(self._before[name] + place * self._update[name])

    def follow(self, distance: Callable[[], Tensor]) -> None:
        """Move to where ``distance``, of the present images' gradient to the update, is least nearby.

        Call it once an iteration, before the losses are taken.
        """
        self._calls += 1
        if self._calls % EVERY or self._step < LAST_STEP:
            return
        here, places = self._place, dict[float, float]()
        for place in (here, here - self._step, here + self._step):
            if 0 <= place <= 1:
                self.move_to(place)
                places[place] = distance().item()
        best = min(places, key=lambda each: places[each])
        if best == here:
            self._step /= 2
        self.move_to(best)

"""SCAFFOLD's control variates (Karimireddy et al. 2020) of what a defense lets leave."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shadow_defense.errors import UpdateError


def control_change(
    control: Mapping[str, Tensor], update: Mapping[str, Tensor], *, steps: int, learning_rate: float
) -> dict[str, Tensor]:
    """``c_i+ - c_i = -c + (x - y_i) / (K eta)``, option II of the paper, for each tensor of ``control``.

    As published, y_i is the trained model, and the difference gives the raw update away. Here it is the model that
    leaves: what is computed from it, and from what the server sent, tells the server nothing new.

    Args:
        control: c, the server's.
        update: ``y_i - x``, protected.
        steps: K, local steps.
        learning_rate: eta, of those steps.

    Raises:
        UpdateError: without steps or a learning rate, or where the quotient is not finite.

    >>> control_change({"w": torch.ones(1)}, {"w": -torch.ones(1)}, steps=2, learning_rate=0.25)
    {'w': tensor([1.])}
    """
    if steps < 1 or not 0 < learning_rate < math.inf:
        raise UpdateError(
            f"a control variate of {steps} steps at learning rate {learning_rate}: expected at least 1 and more than 0"
        )
    changed = {
        name: (-tensor.double() - update[name].double() / (steps * learning_rate)).to(tensor.dtype)
        for name, tensor in control.items()
    }
    for name, tensor in changed.items():
        if not torch.isfinite(tensor).all():
            raise UpdateError(f"the control variate of tensor '{name}' is not finite: raise the learning rate")
    return changed

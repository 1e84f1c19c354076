"""A guard, a model and a batch small enough for a test to have many of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

SIDE, Z, COUNT = 16, 6, 4


def images(count: int = COUNT) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generator() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(Z, SIDE * SIDE), nn.Tanh(), nn.Unflatten(1, (1, SIDE, SIDE)))


def net(outputs: int = 2, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(256, outputs))


def guard(*, logits: Any = None, **settings: Any) -> ShadowGuard:
    quick = {"latent_iterations": 5, "attack_iterations": 2}
    return ShadowGuard(generator(), ShadowSettings(**{**quick, **settings}), z_dim=Z, logits=logits)


def step(
    given: Any = None,
    labels: Any = None,
    sample_ids: Any = None,
    *,
    model: nn.Module | None = None,
    loss_fn: Any = F.cross_entropy,
    **changes: Any,
) -> dict[str, Any]:
    """The arguments of ``protect`` and ``examine``."""
    given = images() if given is None else given
    model = net() if model is None else model
    return {
        "images": given,
        "labels": torch.arange(len(given)) % 2 if labels is None else labels,
        "sample_ids": [f"i{index}" for index in range(len(given))] if sample_ids is None else sample_ids,
        "model": model,
        "global_model": model,
        "loss_fn": loss_fn,
        "round": 0,
        "rounds": 3,
        **changes,
    }

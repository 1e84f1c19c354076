"""Adam and AdamW against torch's own optimisers, to the bit."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.models.adam import Adam


@pytest.mark.parametrize(
    ("kind", "weight_decay", "fused"),
    [(torch.optim.Adam, 0.0, True), (torch.optim.AdamW, 0.01, None), (torch.optim.AdamW, 0.01, True)],
)
def test_steps_are_torchs_own(kind: type[torch.optim.Optimizer], weight_decay: float, fused: bool | None) -> None:
    """Also where a parameter gets its first gradient late, and where the learning rate changes."""
    draws = torch.Generator().manual_seed(0)
    own = [torch.randn(shape, generator=draws).requires_grad_() for shape in ((3, 4), (5,), ())]
    others = [each.detach().clone().requires_grad_() for each in own]
    ours, theirs = Adam(own, weight_decay=weight_decay, fused=fused), kind(others, lr=0.1, fused=fused)
    assert theirs.defaults["weight_decay"] == weight_decay
    for step in range(6):
        slopes = [
            torch.randn(each.shape, generator=draws) if place or step > 2 else None for place, each in enumerate(own)
        ]
        rate = 0.1 * 0.5 ** (step // 4)
        ours.step(slopes, rate)
        for each, slope in zip(others, slopes, strict=True):
            each.grad = slope
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
    assert all(torch.equal(*pair) for pair in zip(own, others, strict=True))

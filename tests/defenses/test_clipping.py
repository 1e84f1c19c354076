"""Clipping: numbers worked out by hand, properties, and one round of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.defenses.clipping import (
    ClippingDefense,
    ClippingSettings,
    clip_factor,
    clip_global,
    clip_tensors,
    global_norm,
)

TENSORS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9).map(torch.tensor),
    min_size=1,
)


def test_numbers_of_the_toy_network(toy_gradients: dict[str, Tensor]) -> None:
    assert global_norm(toy_gradients) == pytest.approx(2.9154759, abs=1e-7)
    clipped = clip_global(toy_gradients, 1.0)
    assert clipped["w1"].abs().tolist() == [pytest.approx([0.1714985, 0.3429971], abs=1e-6)] * 2
    unchanged = clip_global(toy_gradients, 4.0)
    assert all(torch.equal(tensor, unchanged[name]) for name, tensor in toy_gradients.items())
    # The analytic leak of a linear layer does not see it: x = (1, 2).
    torch.testing.assert_close(clipped["w1"][0] / clipped["b1"][0], torch.tensor([1.0, 2.0]))


def test_factors_of_single_tensors(toy_gradients: dict[str, Tensor]) -> None:
    clipped = clip_tensors(toy_gradients, 1.0)
    for name, factor in {"w1": 0.6324555, "b1": 1, "w2": 0.4472136, "b2": 1}.items():
        torch.testing.assert_close(clipped[name], factor * toy_gradients[name], rtol=0, atol=2e-6)


def test_a_federated_update() -> None:
    """Rate 0.1, steps g = (3, 4) and (0, 5)."""
    steps = [{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 5.0])}]
    update = {"w": -0.1 * (steps[0]["w"] + steps[1]["w"])}
    assert clip_global(update, 0.5)["w"].tolist() == pytest.approx([-0.1581139, -0.4743416], abs=1e-6)
    each = -0.1 * sum(clip_global(step, 1.0)["w"] for step in steps)
    assert each.tolist() == pytest.approx([-0.06, -0.18], abs=1e-6)


@pytest.mark.parametrize("clip_all", [clip_global, clip_tensors])
@given(tensors=TENSORS, bound=st.floats(1e-3, 1e7))
def test_bounded_parallel_and_never_aliased(
    clip_all: Callable[..., dict[str, Tensor]], tensors: dict[str, Tensor], bound: float
) -> None:
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    clipped = clip_all(tensors, bound)
    unbounded = clip_all(tensors, math.inf)
    for name, tensor in clipped.items():
        norm = global_norm({name: tensor})
        assert norm <= bound * (1 + 1e-6)
        assert torch.equal(unbounded[name], before[name])
        torch.testing.assert_close(
            tensor * global_norm({name: before[name]}), before[name] * norm, rtol=1e-4, atol=1e-9
        )
        for result in (tensor, unbounded[name]):
            result += 1
        assert torch.equal(tensors[name], before[name])


@given(tensors=TENSORS, bound=st.floats(1e-3, 1e7))
def test_the_global_norm_is_bounded_over_all_tensors(tensors: dict[str, Tensor], bound: float) -> None:
    norm, clipped = global_norm(tensors), clip_global(tensors, bound)
    assert global_norm(clipped) <= bound * (1 + 1e-6)
    assert global_norm(clipped) == pytest.approx(norm * clip_factor(norm, bound), rel=1e-5)


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("place", ["gradients", "update"])
def test_one_step_in_training(local_round: Callable[..., Any], place: Any, scope: Any) -> None:
    """Of one plain SGD step: the update is -lr clip(g), or clip(-lr g)."""
    plain = local_round(normalisation="batch").update.tensors
    buffers = {name for name in plain if "running" in name or "num_batches" in name}
    gradients = {name: tensor / -0.1 for name, tensor in plain.items() if name not in buffers}
    assert global_norm(gradients) > 0.5
    settings = ClippingSettings(clip=0.5 if place == "gradients" else 0.05, place=place, scope=scope)
    result = local_round(ClippingDefense(settings), normalisation="batch")
    expected = (clip_global if scope == "global" else clip_tensors)(gradients, 0.5)
    for name, tensor in result.update.tensors.items():
        if name in buffers:
            assert torch.equal(tensor, plain[name]) and tensor.dtype == plain[name].dtype
        else:
            torch.testing.assert_close(tensor, -0.1 * expected[name], rtol=1e-4, atol=1e-6)
    size = global_norm(gradients) * (1 if place == "gradients" else 0.1)
    assert result.measurements == {"clipped_share": 1.0, "norm": pytest.approx(size, rel=1e-4)}


def test_the_share_of_active_steps(local_round: Callable[..., Any]) -> None:
    def share(clip: float, **settings: Any) -> float:
        defense = ClippingDefense(ClippingSettings(clip=clip, **settings))
        return local_round(defense, count=8, batch_size=1).measurements["clipped_share"]

    norms: list[float] = []

    class Recording(ClippingDefense):
        def protect(self, tensors, batch, context):  # type: ignore[no-untyped-def]
            norms.append(global_norm(tensors))
            return super().protect(tensors, batch, context)

    plain = local_round(Recording(ClippingSettings(clip=1e9)), count=8, batch_size=1)
    assert plain.measurements == {"clipped_share": 0.0, "norm": pytest.approx(sum(norms) / 8)}
    assert share(1e-3) == 1.0
    assert 0 < share(sorted(norms)[4]) < 1

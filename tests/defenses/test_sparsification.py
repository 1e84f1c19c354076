"""Sparsification against numpy's percentile, numbers worked out by hand, and one round of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.defenses.base import RoundContext
from shadow_defense.defenses.sparsification import (
    SparsificationDefense,
    SparsificationSettings,
    smallest_kept,
    sparsify,
)


def test_numbers_of_the_toy_network(toy_gradients: dict[str, Tensor]) -> None:
    sparse = sparsify(toy_gradients, 50.0)
    assert sparse["w1"].tolist() == [[0, -1], [0, 1]]
    assert sparse["w2"].tolist() == [[0, -1.5], [0, 1.5]]
    # All magnitudes are the same: ties survive.
    assert sparse["b1"].tolist() == sparse["b2"].tolist() == [-0.5, 0.5]
    assert (sparse["w1"][0] / sparse["b1"][0]).tolist() == [0, 2]
    # The percentile of all four together is 0.5: nothing is below it. Above it, only the large ones are left.
    whole = sparsify(toy_gradients, 50.0, "global")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in toy_gradients.items())
    assert [int((tensor != 0).sum()) for tensor in sparsify(toy_gradients, 75.0, "global").values()] == [2, 0, 2, 0]


@pytest.mark.parametrize(("count", "percent", "kept"), [(5, 80.0, {5}), (10, 90.0, {10}), (11, 70.0, {8, 9, 10, 11})])
def test_percentiles_of_counts(count: int, percent: float, kept: set[int]) -> None:
    values = torch.arange(1.0, count + 1)
    assert {int(value) for value in sparsify({"v": values}, percent)["v"] if value} == kept


@given(count=st.integers(1, 400), percent=st.decimals(0, 100, places=2), seed=st.integers(0, 99))
def test_how_many_are_kept_of_different_magnitudes(count: int, percent: Any, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count,), generator=draws) * 2 - 1
    values = (torch.randperm(count, generator=draws) + 1.0) * signs
    sparse = sparsify({"v": values}, float(percent))["v"]
    assert int((sparse != 0).sum()) == count - math.ceil((count - 1) * Fraction(percent) / 100)
    assert sparse.abs().sort().values[-1] == count
    assert torch.equal(sparse[sparse != 0], values[sparse != 0])


@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=60).map(lambda values: [value / 4 for value in values]),
    percent=st.integers(0, 100),
)
def test_the_same_as_numpys_linear_percentile_with_ties(values: list[float], percent: int) -> None:
    tensor = torch.tensor(values)
    threshold = np.percentile(np.abs(np.array(values)), percent)
    expected = [0.0 if abs(value) < threshold - 1e-12 else value for value in values]
    assert sparsify({"v": tensor}, float(percent))["v"].tolist() == expected


def test_neighbours_that_no_float_lies_between() -> None:
    """Interpolated in float32 the percentile would be rounded to one of the two."""
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    assert smallest_kept(torch.stack([low, high]), 25.0) == high
    assert sparsify({"v": torch.stack([low, high])}, 25.0)["v"].tolist() == [0, high.item()]


@given(st.lists(st.floats(-10, 10, width=32), max_size=9).map(torch.tensor), st.sampled_from(["tensor", "global"]))
def test_nothing_removed_is_the_identity_without_aliasing(tensor: Tensor, scope: Any) -> None:
    tensors = {"a": tensor, "b": torch.ones(2, 2)}
    before = tensor.clone()
    for percent in (0.0, 60.0):
        result = sparsify(tensors, percent, scope)
        assert result["b"].shape == (2, 2)
        if percent == 0:
            assert torch.equal(result["a"], before)
        result["a"] += 1
        assert torch.equal(tensors["a"], before)


def test_more_entries_than_torch_quantile_takes() -> None:
    values = torch.arange(float(2**24), 0, -1)
    values = torch.cat([values, torch.full((9,), 0.5)])
    kept = sparsify({"v": values}, 50.0)["v"]
    assert int((kept != 0).sum()) == len(values) - math.ceil((len(values) - 1) / 2)


def test_what_is_no_number_is_not_hidden() -> None:
    sparse = sparsify({"v": torch.tensor([float("nan"), 1.0, 2.0, 3.0])}, 50.0)["v"]
    assert sparse.isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("place", ["gradients", "update"])
def test_one_step_in_training(local_round: Callable[..., Any], place: Any, scope: Any) -> None:
    plain = local_round(normalisation="batch").update.tensors
    buffers = {name for name in plain if "running" in name or "num_batches" in name}
    result = local_round(
        SparsificationDefense(SparsificationSettings(percent=80, place=place, scope=scope)), normalisation="batch"
    )
    expected = sparsify({name: tensor for name, tensor in plain.items() if name not in buffers}, 80.0, scope)
    different = total = zeros = 0
    for name, tensor in result.update.tensors.items():
        if name in buffers:
            assert torch.equal(tensor, plain[name]) and tensor.dtype == plain[name].dtype
            continue
        # What survives is what was there; w - lr g rounds, so that a few of the smallest change places.
        kept = tensor != 0
        torch.testing.assert_close(tensor[kept], plain[name][kept], rtol=0, atol=0)
        different += int((kept != (expected[name] != 0)).sum())
        total += tensor.numel()
        zeros += int((~kept).sum())
    assert different <= (0 if place == "update" else 0.01 * total)
    assert result.measurements["zero_share"] == pytest.approx(zeros / total, abs=0.01)
    assert 0.75 < zeros / total < 0.81


def in_training(defense: SparsificationDefense, values: list[float], round: int = 0) -> list[float]:
    model = torch.nn.Linear(len(values), 1, bias=False)
    context = RoundContext(model, {}, torch.nn.functional.cross_entropy, round, 9, 0.1)
    defense.begin_round(context)
    return defense.protect_update({"weight": torch.tensor([values])}, context)["weight"][0].tolist()


def test_error_feedback_sends_later_what_it_holds_back() -> None:
    settings = SparsificationSettings(percent=60, error_feedback=True, place="update")
    defense = SparsificationDefense(settings)
    assert defense.state_dict() == {}
    assert in_training(defense, [1.0, 2.0, 4.0]) == [0, 0, 4]
    # A resumed client goes on with what it held back.
    resumed = SparsificationDefense(settings)
    resumed.load_state_dict(defense.state_dict())
    for again in (defense, resumed):
        assert in_training(again, [1.0, 2.5, 3.0], 1) == [0, 4.5, 0]
        assert in_training(again, [0.0, 0.0, 0.0], 2) == [0, 0, 3]
        assert again.state_dict()["held_back"]["weight"].tolist() == [[2, 0, 0]]
    assert in_training(SparsificationDefense(SparsificationSettings(percent=60, place="update")), [1, 2, 4.0]) == [
        0,
        0,
        4,
    ]


def test_everything_is_sent_or_held_back(local_round: Callable[..., Any]) -> None:
    defense = SparsificationDefense(SparsificationSettings(percent=90, error_feedback=True, place="update"))
    plain, sent = (local_round(each, count=4, batch_size=2).update.tensors for each in (None, defense))
    for name, held in defense.state_dict()["held_back"].items():
        torch.testing.assert_close(sent[name] + held, plain[name], rtol=0, atol=0)

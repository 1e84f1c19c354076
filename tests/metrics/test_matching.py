"""Matching in the right direction: 3-cycles, left-over reconstructions, and permutations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_defense.errors import DataError
from shadow_defense.metrics.matching import best_over_client_images, match, pairwise_costs
from shadow_defense.metrics.psnr import pairwise_psnr, psnr
from shadow_defense.seeds import named_generator


def near_perfect(truths: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(truths.shape, generator=named_generator(0, "noise"))
    return (truths + 0.01 * noise).clamp(0, 1)


def random_truths(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 12, 12, generator=named_generator(seed, "truths"))


def test_a_three_cycle_scores_as_if_unpermuted() -> None:
    # A swap is its own inverse and hides an assignment applied backwards; a 3-cycle does not.
    truths = random_truths(3)
    reconstructions = near_perfect(truths)
    unpermuted = psnr(reconstructions, truths)
    cycle = torch.tensor([1, 2, 0])
    permuted = reconstructions[cycle]
    assignment = match(-pairwise_psnr(permuted, truths))
    assert assignment.tolist() == [1, 2, 0]
    torch.testing.assert_close(psnr(permuted, truths[assignment]), unpermuted[cycle])
    assert unpermuted.min() > 39


@settings(max_examples=30)
@given(order=st.permutations(list(range(5))), seed=st.integers(0, 1000))
def test_permuting_reconstructions_or_truths_changes_no_score(order: list[int], seed: int) -> None:
    truths = random_truths(5, seed)
    reconstructions = near_perfect(truths)
    expected = psnr(reconstructions, truths)
    permutation = torch.tensor(order)
    moved = reconstructions[permutation]
    torch.testing.assert_close(psnr(moved, truths[match(-pairwise_psnr(moved, truths))]), expected[permutation])
    shuffled = truths[permutation]
    assignment = match(-pairwise_psnr(reconstructions, shuffled))
    torch.testing.assert_close(psnr(reconstructions, shuffled[assignment]), expected)


def test_the_total_cost_decides_and_not_the_nearest_first() -> None:
    # Row 0 alone would take column 0 at 1; the least total is 2 + 2, not 1 + 9.
    assert match(torch.tensor([[1.0, 2.0], [2.0, 9.0]])).tolist() == [1, 0]


def test_left_over_reconstructions_and_truths() -> None:
    assert match(torch.tensor([[5.0], [1.0], [3.0]])).tolist() == [-1, 0, -1]
    assert match(torch.tensor([[5.0, 1.0, 3.0]])).tolist() == [1]
    assert match(torch.zeros(2, 0)).tolist() == [-1, -1]


def test_costs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        match(torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]))


def test_best_over_client_images_lets_each_metric_choose_another_image() -> None:
    # Truth 0 is the reconstruction brightened (best SSIM, bad PSNR); truth 1 has its mean and no structure.
    generator = named_generator(0, "best")
    reconstruction = 0.3 + 0.02 * torch.rand(1, 1, 16, 16, generator=generator)
    truths = torch.cat([reconstruction + 0.05, torch.full_like(reconstruction, reconstruction.mean().item())])
    costs = pairwise_costs(reconstruction, truths)
    assert (costs["psnr"].argmin(), costs["ssim"].argmin()) == (1, 0)
    assert best_over_client_images(costs["psnr"])[0] == costs["psnr"][0, 1]
    assert best_over_client_images(costs["ssim"])[0] == costs["ssim"][0, 0]
    with pytest.raises(DataError, match="no images to match"):
        best_over_client_images(torch.zeros(1, 0))

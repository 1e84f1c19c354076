"""Averaging over rounds: orders that the test made, noise that it drew, and assignments worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.attacks import clients
from torch import Tensor

from shadow_defense.attacks.adaptive.over_rounds import average_over_rounds
from shadow_defense.errors import DataError
from shadow_defense.metrics.psnr import psnr

LABELS = torch.tensor([0, 0, 1, 1, 1])


def column(*values: float) -> Tensor:
    """Images of one pixel."""
    return torch.tensor(values).view(-1, 1, 1, 1)


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=4))
def test_rounds_in_any_order_average_to_the_last_ones(orders: list[list[int]]) -> None:
    images = clients.private(5)
    averaged = average_over_rounds([images[order] for order in orders], [LABELS[order] for order in orders])
    torch.testing.assert_close(averaged, images[orders[-1]])


def test_noise_of_four_rounds_falls_by_six_decibels() -> None:
    """Independent noise: its variance falls fourfold, 10 log10 4 = 6.02 dB."""
    images = clients.private(5)
    draws = torch.Generator().manual_seed(0)
    orders = [torch.randperm(5, generator=draws) for _ in range(3)] + [torch.arange(5)]
    rounds = [(images + 0.05 * torch.randn(images.shape, generator=draws))[order] for order in orders]
    gained = psnr(average_over_rounds(rounds, [LABELS[order] for order in orders]), images) - psnr(rounds[-1], images)
    assert gained.mean().item() == pytest.approx(10 * math.log10(4), abs=0.5)


def test_the_sum_of_squares_is_least_not_each_pair() -> None:
    """The first round's 0.5 is nearest to 0.6, yet 0.5 -> 0 and 0.9 -> 0.6 cost 0.34, the other way 0.82."""
    averaged = average_over_rounds([column(0.5, 0.9), column(0.6, 0.0)], [torch.tensor([0, 0])] * 2)
    torch.testing.assert_close(averaged, column(0.75, 0.25))


def test_never_across_labels() -> None:
    """Though each image's twin in the other round has the other label."""
    averaged = average_over_rounds([column(0.0, 1.0), column(0.0, 1.0)], [torch.tensor([1, 0]), torch.tensor([0, 1])])
    torch.testing.assert_close(averaged, column(0.5, 0.5))


def test_across_labels_only_where_rounds_disagree_about_them() -> None:
    """One label of three was recovered wrongly in the first round: that image takes the place that is left."""
    first = (column(0.9, 0.5, 0.1), torch.tensor([1, 1, 1]))
    last = (column(0.1, 0.4, 1.0), torch.tensor([0, 1, 1]))
    averaged = average_over_rounds([first[0], last[0]], [first[1], last[1]])
    torch.testing.assert_close(averaged, column(0.1, 0.45, 0.95))


def test_rounds_that_are_not_finite_are_left_out() -> None:
    labels = torch.tensor([0, 1])
    rounds = [column(math.nan, 0.3), column(0.2, 0.6), column(0.4, 0.8), column(math.inf, 0.0)]
    averaged = average_over_rounds(rounds[:3], [labels] * 3)
    torch.testing.assert_close(averaged, column(0.3, 0.7))
    # The last round still says which order is wanted.
    averaged = average_over_rounds(rounds, [labels, labels, labels, labels.flip(0)])
    torch.testing.assert_close(averaged, column(0.7, 0.3))


def test_what_cannot_be_averaged() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(DataError, match="0 rounds of reconstructions with 0 of labels: expected at least one"):
        average_over_rounds([], [])
    with pytest.raises(DataError, match="1 rounds of reconstructions with 2 of labels"):
        average_over_rounds([column(0.0, 1.0)], [labels, labels])
    with pytest.raises(DataError, match="all 2 rounds hold NaN or infinity"):
        average_over_rounds([column(math.nan, 0.0), column(math.inf, 0.0)], [labels, labels])

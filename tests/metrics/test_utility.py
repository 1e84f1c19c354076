"""Utility against a case counted by hand, and where it is undefined."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.errors import DataError
from shadow_defense.metrics.utility import best_threshold, utility, utility_from_logits
from shadow_defense.seeds import named_generator

PROBABILITIES = torch.tensor(
    [
        [0.7, 0.2, 0.1],
        [0.5, 0.3, 0.2],
        [0.2, 0.6, 0.2],
        [0.6, 0.3, 0.1],
        [0.1, 0.1, 0.8],
        [0.1, 0.5, 0.4],
    ]
)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_a_case_counted_by_hand() -> None:
    # Predictions 0 0 1 0 2 1. Class 0: 2 hits, 1 false alarm, F1 4/5; class 1: 1 hit, 1 false alarm, 1 miss, 1/2;
    # class 2: 1 hit, 1 miss, 2/3. AUROC: class 0: positives .7 .5 against .2 .6 .1 .1, 7 of 8 pairs; class 1:
    # .6 .3 against .2 .3 .1 .5, 6.5 of 8; class 2: .8 .4 against .1 .2 .2 .1, 8 of 8.
    expected = {
        "accuracy": 4 / 6,
        "f1_micro": 4 / 6,
        "f1_macro": (4 / 5 + 1 / 2 + 2 / 3) / 3,
        "f1_class_0": 4 / 5,
        "f1_class_1": 1 / 2,
        "f1_class_2": 2 / 3,
        "auroc": (7 / 8 + 6.5 / 8 + 1) / 3,
    }
    assert utility(PROBABILITIES, LABELS) == pytest.approx(expected, rel=1e-5)


def test_logits_give_what_their_probabilities_give() -> None:
    probabilities = PROBABILITIES.clone()
    # No ties: a logarithm and its inverse may order equal numbers.
    probabilities[1] = torch.tensor([0.5, 0.25, 0.25])
    logits = probabilities.log() + torch.tensor([3.0, -1.0, 0.0, 5.0, 2.0, 9.0])[:, None]
    assert utility_from_logits(logits, LABELS) == pytest.approx(utility(probabilities, LABELS), rel=1e-5)


def test_logits_between_zero_and_one_are_not_taken_for_probabilities() -> None:
    # AUROC ranks images against each other: here softmax turns the order of class 1 around.
    logits = torch.tensor([[0.0, 0.5], [0.9, 0.6], [0.0, 0.1]])
    labels = torch.tensor([1, 0, 0])
    assert utility_from_logits(logits, labels)["auroc"] == 1
    with pytest.raises(DataError, match="utility_from_logits"):
        utility(logits, labels)


def test_auroc_of_two_classes_is_the_share_of_ordered_pairs() -> None:
    generator = named_generator(0, "utility")
    positive = torch.rand(60, generator=generator)
    labels = (torch.rand(60, generator=generator) < positive).long()
    pairs = positive[labels == 1][:, None] > positive[labels == 0][None, :]
    result = utility(torch.stack([1 - positive, positive], dim=1), labels)
    assert result["auroc"] == pytest.approx(pairs.double().mean().item(), rel=1e-5)


def test_an_absent_class_has_no_auroc_and_does_not_lower_the_macro_mean() -> None:
    result = utility(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), torch.tensor([0, 1]))
    assert result["auroc"] is None
    assert (result["f1_class_2"], result["f1_macro"]) == (0, 1)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.zeros(0, 2), [], "no images"),
        (torch.tensor([[0.5, 0.5]]), [2], "label 2 of image 0 is out of range: expected 0 to 1"),
        (torch.tensor([[float("nan"), 0.5]]), [0], "diverged"),
        (torch.tensor([[1.5, -0.5]]), [0], "utility_from_logits"),
        (torch.tensor([[1.0]]), [0], "one column"),
    ],
)
def test_unusable_predictions_are_refused(probabilities: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        utility(probabilities, torch.tensor(labels, dtype=torch.int64))


def test_the_best_threshold_beats_every_other() -> None:
    """Against all thresholds tried one by one, with ties and with all of one class."""
    draws = named_generator(3, "threshold")
    for count in (2, 5, 40):
        scores = torch.randint(0, 12, (count,), generator=draws) / 12
        labels = torch.randint(0, 2, (count,), generator=draws)

        def f1(threshold: float, scores: torch.Tensor = scores, labels: torch.Tensor = labels) -> float:
            called = (scores > threshold).double()
            found = utility(torch.stack([1 - called, called], dim=1), labels)["f1_macro"]
            assert found is not None
            return found

        between = [(a + b) / 2 for a, b in zip(scores.unique()[:-1], scores.unique()[1:], strict=True)]
        tried = [f1(float(each)) for each in between] or [f1(0.5)]
        assert f1(best_threshold(scores, labels)) == pytest.approx(max(tried))

"""Labels from the last layer's gradient, compared with the labels of real batches on real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks import clients
from torch import Tensor, nn

from shadow_defense.attacks.label_recovery import (
    head_gradient,
    label_rule,
    last_linear_layer,
    mean_gradient,
    mean_probabilities,
    recover_labels,
)
from shadow_defense.attacks.label_rules import (
    LABEL_RULES,
    HeadGradient,
    bias_corrected,
    column_minimum,
    multi_step,
    negative_bias,
    row_sums,
    whole_counts,
)
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.target import matching_target
from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import ModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.settings import ModelSettings


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(model: nn.Module, labels: list[int], seed: int, order: list[int] | None = None) -> HeadGradient:
    order = order or list(range(len(labels)))
    images = drawn(len(labels), 1, 8, 8, seed=seed)[order]
    parameters, buffers = split_state(model, model)
    gradients = loss_gradients(model, parameters, buffers, images, torch.tensor(labels)[order], F.cross_entropy)
    return head_gradient(model, gradients)


def scaled(head: HeadGradient, scale: float) -> HeadGradient:
    return HeadGradient(scale * head.weight, scale * head.bias, head.probabilities)


def only_bias(*bias: float) -> HeadGradient:
    return HeadGradient(torch.zeros(len(bias), 1), torch.tensor(bias))


def build(classes: int, seed: int, name: str = "lenet") -> nn.Module:
    chosen = ModelSettings(name=name, normalisation="none", width=8)
    return build_model(chosen, channels=1, classes=classes, image_size=(8, 8), seed=seed)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 12),
    label=st.integers(0, 11),
    name=st.sampled_from(["lenet", "convnet"]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_one_image_is_always_right(seed: int, classes: int, label: int, name: str, scale: float) -> None:
    wanted = label % classes
    gradient = scaled(gradient_of(build(classes, seed, name), [wanted], seed), scale)
    assert bias_corrected(gradient, 1).tolist() == [wanted]
    assert negative_bias(gradient, 1).tolist() == [wanted]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    labels=st.lists(st.integers(0, 49), min_size=1, max_size=8),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_repeated_labels_of_a_fresh_model_with_many_classes(seed: int, labels: list[int], scale: float) -> None:
    model = build(50, seed)
    with torch.no_grad():
        # Nearly uniform probabilities, as a model before training gives.
        model.classifier.weight.mul_(0.01)
        model.classifier.bias.mul_(0.01)
    gradient = gradient_of(model, labels, seed)
    assert bias_corrected(scaled(gradient, scale), len(labels)).tolist() == sorted(labels)
    assert set(negative_bias(gradient, len(labels)).tolist()) == set(labels)
    near_uniform = gradient._replace(probabilities=torch.full((50,), 1 / 50))
    assert multi_step(near_uniform, len(labels)).tolist() == sorted(labels)


def test_the_most_negative_entry_wins_where_noise_left_several() -> None:
    assert bias_corrected(only_bias(-0.01, 0.3, -0.7, 0.41), 1).tolist() == [2]
    assert bias_corrected(only_bias(-0.01, -0.3, -0.7, 1.01), 2).tolist() == [1, 2]


def test_a_gradient_without_negative_entries_still_gives_labels() -> None:
    labels = bias_corrected(only_bias(0.3, 0.1, 0.2), 2)
    assert labels.tolist()[0] in (0, 1, 2) and len(labels) == 2
    assert bias_corrected(only_bias(0.3, 0.1, 0.2), 1).tolist() == [1]


def test_row_sums_where_the_head_has_no_bias() -> None:
    """iDLG: after a sigmoid features are positive, so that only the true class's row is negative."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 6, bias=False))
    torch.nn.init.normal_(model[3].weight, generator=torch.Generator().manual_seed(0))
    for label in range(6):
        gradient = gradient_of(model, [label], seed=label)
        for rule in (row_sums, bias_corrected, column_minimum):
            assert rule(gradient, 1).tolist() == [label]


def test_which_layer_is_the_head() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert last_linear_layer(model) == "2"
    with pytest.raises(ModelError, match="no linear layer"):
        last_linear_layer(nn.Conv2d(1, 1, 1))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 12),
    label=st.integers(0, 11),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_every_rule_is_exact_for_one_image_of_any_head(seed: int, classes: int, label: int, spread: float) -> None:
    """Softmax cross entropy by hand: ``dlogits = p - onehot``, ``dW = dlogits h^T`` with features of ReLU."""
    wanted = label % classes
    probabilities = (spread * drawn(classes, seed=seed)).softmax(0)
    on_logits = probabilities - F.one_hot(torch.tensor(wanted), classes)
    features = drawn(7, seed=seed + 1).relu() + 0.01
    head = HeadGradient(torch.outer(on_logits, features), on_logits, probabilities)
    for name, rule in LABEL_RULES.items():
        assert rule(head, 1).tolist() == [wanted], name


def test_rules_by_hand() -> None:
    """Three images of classes 2, 2 and 0, probabilities (0.2, 0.3, 0.5): db = (-0.4, 0.9, -0.5) / 3."""
    bias = torch.tensor([0.6 - 1, 0.9, 1.5 - 2]) / 3
    weight = torch.tensor([[0.5, -0.6, 0.1], [-0.1, 0.3, 0.2], [-0.3, -0.4, 0.6]])
    head = HeadGradient(weight, bias, torch.tensor([0.2, 0.3, 0.5]))
    # Row sums 0, 0.4, -0.1.
    assert row_sums(head, 1).tolist() == [2]
    assert negative_bias(head, 3).tolist() == [0, 2]
    # Minima of the rows -0.6, -0.1, -0.4; no class twice, so that the third label is wrong.
    assert column_minimum(head, 1).tolist() == [0]
    assert column_minimum(head, 3).tolist() == [0, 1, 2]
    # m = -0.9 / 9 = -0.1; left are -0.4/3 + 0.1 and -0.5/3 + 0.1.
    assert bias_corrected(head, 3).tolist() == [0, 2, 2]
    assert multi_step(head, 3).tolist() == [0, 2, 2]


@given(shares=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12), total=st.integers(1, 40))
def test_whole_counts_sum_to_the_total_and_are_near(shares: list[float], total: int) -> None:
    counts = whole_counts(torch.tensor(shares), total)
    assert int(counts.sum()) == total and int(counts.min()) >= 0
    positive = torch.tensor(shares).clamp_min(0)
    if positive.sum() > 1e-3:
        assert (counts - positive * total / positive.sum()).abs().max() < 1 + 1e-3


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), order=st.permutations(range(6)))
def test_the_order_of_the_batch_never_comes_out(seed: int, order: list[int]) -> None:
    labels = torch.randint(0, 5, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    model = build(5, seed)
    probabilities = torch.full((5,), 0.2)
    straight = gradient_of(model, labels, seed)._replace(probabilities=probabilities)
    mixed = gradient_of(model, labels, seed, order)._replace(probabilities=probabilities)
    for rule in LABEL_RULES.values():
        found = rule(straight, 6).tolist()
        assert found == sorted(found) and rule(mixed, 6).tolist() == found


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
def test_the_mean_gradient_of_constant_gradients(momentum: float, weight_decay: float) -> None:
    """By torch's own SGD, with steps so small that the weight that decays stays where it was."""
    start, gradient = torch.tensor([0.3, -0.7]).double(), torch.tensor([2.0, -1.0]).double()
    weight = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=1e-7, momentum=momentum, weight_decay=weight_decay)
    for _ in range(5):
        weight.grad = gradient.clone()
        optimiser.step()
    found = mean_gradient(
        weight.detach() - start, start, LocalTraining(1e-7, 4, 5, momentum=momentum, weight_decay=weight_decay)
    )
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=0)


def trained(
    seed: int, classes: int, epochs: int, threat: str = "honest-but-curious server"
) -> tuple[Observation, list[int]]:
    """A client of eight faces with repeated labels, 4 to 16 steps in batches of four or eight."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, max(2, classes // 2), (8,), generator=draws).tolist()
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8)
    model = build_model(chosen, channels=1, classes=classes, image_size=(16, 16), seed=seed)
    seen, _ = clients.observation(
        model,
        tuple(labels),
        classes=classes,
        threat=threat,
        batch_size=4 + 4 * (seed % 2),
        epochs=epochs,
        learning_rate=0.05,
    )
    return seen, labels


def wrong(found: Tensor, labels: list[int], classes: int) -> int:
    """Labels that would have to be changed."""
    counts = torch.bincount(found, minlength=classes) - torch.bincount(torch.tensor(labels), minlength=classes)
    return int(counts.abs().sum()) // 2


@pytest.mark.parametrize("classes", [2, 10])
def test_the_multi_step_rule_counts_better_than_one_step(classes: int) -> None:
    """Twenty clients of eight images: 2 labels of 160 wrong and not 15 (ten classes), 6 and not 58 (two)."""
    errors = {"multi-step": 0, "bias-corrected": 0}
    for seed in range(20):
        seen, labels = trained(seed, classes, epochs=(4, 8)[seed % 2])
        assert 4 <= seen.local_training.steps <= 16
        assert label_rule(seen) == "multi-step"
        errors["multi-step"] += wrong(recover_labels(seen, seen.update.tensors, 8), labels, classes)
        head = head_gradient(seen.model, {name: -tensor for name, tensor in seen.update.tensors.items()})
        errors["bias-corrected"] += wrong(bias_corrected(head, 8), labels, classes)
    assert errors["multi-step"] < 0.5 * errors["bias-corrected"]


def test_both_models_are_asked() -> None:
    """The client's images move the probabilities towards their labels while it trains."""
    seen, _ = trained(0, 10, epochs=8)
    present = seen.update
    still = {name: torch.zeros_like(tensor) for name, tensor in present.tensors.items()}
    before, mean = mean_probabilities(seen, still), mean_probabilities(seen, present.tensors)
    torch.testing.assert_close(mean.sum(), torch.tensor(1.0))
    assert (mean - before).abs().max() > 0.02
    # The observed model and its state are as they were.
    torch.testing.assert_close(mean_probabilities(seen, still), before, rtol=0, atol=0)


def test_public_images_are_asked_where_they_are_granted() -> None:
    seen, _ = trained(0, 10, epochs=4, threat="server with auxiliary data")
    public = (clients.public() * 255).round().byte()
    images = ImageSet(public, torch.zeros(len(public), dtype=torch.int64), tuple(map(str, range(len(public)))))
    granted = replace(seen, _auxiliary=images)
    by_noise, by_public = (mean_probabilities(each, seen.update.tensors) for each in (seen, granted))
    assert (by_noise - by_public).abs().max() > 1e-4
    withheld, _ = trained(0, 10, epochs=4)
    withheld = replace(withheld, _auxiliary=None)
    torch.testing.assert_close(mean_probabilities(withheld, seen.update.tensors), by_noise)
    assert "public images (rule multi-step)" in matching_target(granted, 16).notes[-1]
    assert "noise (rule multi-step)" in matching_target(seen, 16).notes[-1]


def test_which_rule_is_taken() -> None:
    several, _ = trained(1, 10, epochs=4)
    target = matching_target(several, longest_unroll=16)
    assert len(target.labels) == 8 and "rule multi-step" in target.notes[-1]
    # Fewer sought than there are: evenly of all.
    averaged = matching_target(several, longest_unroll=1)
    assert averaged.labels.tolist() == target.labels[:: 8 // len(averaged.labels)].tolist()
    unknown, _ = trained(1, 10, epochs=4, threat="eavesdropper")
    once, _ = trained(1, 10, epochs=1)
    for seen in (unknown, once):
        assert label_rule(seen) == "bias-corrected"
        assert "rule bias-corrected" in matching_target(seen, longest_unroll=16).notes[-1]

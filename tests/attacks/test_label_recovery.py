"""Labels from the last layer's gradient, compared with the labels of real batches on real models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shadow_defense.attacks.label_recovery import head_bias_gradient, last_linear_layer, recover_labels
from shadow_defense.errors import ModelError
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.settings import ModelSettings


def bias_gradient(model: nn.Module, labels: list[int], seed: int) -> Tensor:
    images = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    parameters, buffers = split_state(model, model)
    gradients = loss_gradients(model, parameters, buffers, images, torch.tensor(labels), F.cross_entropy)
    return head_bias_gradient(model, gradients)


def build(classes: int, seed: int, name: str = "lenet") -> nn.Module:
    chosen = ModelSettings(name=name, normalisation="none", width=8)
    return build_model(chosen, channels=1, classes=classes, image_size=(8, 8), seed=seed)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 12),
    label=st.integers(0, 11),
    name=st.sampled_from(["lenet", "convnet"]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_one_image_is_always_right(seed: int, classes: int, label: int, name: str, scale: float) -> None:
    wanted = label % classes
    gradient = bias_gradient(build(classes, seed, name), [wanted], seed)
    assert recover_labels(scale * gradient, 1).tolist() == [wanted]


@settings(deadline=None, max_examples=40)
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
    gradient = bias_gradient(model, labels, seed)
    assert recover_labels(scale * gradient, len(labels)).tolist() == sorted(labels)


def test_the_most_negative_entry_wins_where_noise_left_several() -> None:
    assert recover_labels(torch.tensor([-0.01, 0.3, -0.7, 0.41]), 1).tolist() == [2]
    assert recover_labels(torch.tensor([-0.01, -0.3, -0.7, 1.01]), 2).tolist() == [1, 2]


def test_a_gradient_without_negative_entries_still_gives_labels() -> None:
    labels = recover_labels(torch.tensor([0.3, 0.1, 0.2]), 2)
    assert labels.tolist()[0] in (0, 1, 2) and len(labels) == 2
    assert recover_labels(torch.tensor([0.3, 0.1, 0.2]), 1).tolist() == [1]


def test_row_sums_where_the_head_has_no_bias() -> None:
    """iDLG: after a sigmoid features are positive, so that only the true class's row is negative."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 6, bias=False))
    torch.nn.init.normal_(model[3].weight, generator=torch.Generator().manual_seed(0))
    for label in range(6):
        gradient = bias_gradient(model, [label], seed=label)
        assert recover_labels(gradient, 1).tolist() == [label]


def test_which_layer_is_the_head() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert last_linear_layer(model) == "2"
    with pytest.raises(ModelError, match="no linear layer"):
        last_linear_layer(nn.Conv2d(1, 1, 1))

"""Grad-CAM++ per image, in a batch, leaving the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from shadow_defense.errors import DataError, ModelError
from shadow_defense.models.build import build_model
from shadow_defense.models.class_activation import (
    class_activation_maps,
    find_cam_layer,
    grad_cam_plus_plus,
    scale_to_image,
)
from shadow_defense.models.settings import ModelSettings


def build(name: str, normalisation: str = "batch", *, size: int = 16, stem: str = "auto", seed: int = 0) -> nn.Module:
    chosen = ModelSettings(name=name, normalisation=normalisation, width=8, stem=stem, activation="gelu")
    return build_model(chosen, channels=1, classes=3, image_size=(size, size), seed=seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "normalisation", "size", "stem", "layer"),
    [
        ("convnet", "batch", 16, "auto", "features"),
        ("lenet", "none", 16, "auto", "features"),
        ("resnet18", "batch", 32, "small", "layer4"),
        # With the ImageNet stem the last block is left with one pixel, which has no places to tell apart.
        ("resnet18", "batch", 32, "imagenet", "layer3"),
        ("densenet121", "batch", 32, "small", "class_layers.relu"),
        ("preactresnet18", "batch", 32, "auto", "relu"),
    ],
)
def test_last_feature_map(name: str, normalisation: str, size: int, stem: str, layer: str) -> None:
    model = build(name, normalisation, size=size, stem=stem)
    modes = {key: module.training for key, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    assert find_cam_layer(model, drawn(2, 1, size, size)) == layer
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_feature_map_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ModelError, match="no convolutional feature map"):
        find_cam_layer(model, drawn(1, 1, 8, 8))


@pytest.mark.parametrize("layer", ["features", "features.conv2"])
def test_batched_equals_one_by_one(layer: str) -> None:
    # In double precision: the quotient in Grad-CAM++ magnifies the rounding of a batched convolution.
    model, images, classes = build("convnet").double(), drawn(4, 1, 16, 16).double(), torch.tensor([0, 2, 1, 2])
    together = class_activation_maps(model, model, images, classes, layer)
    assert together.shape == (4, 16, 16)
    for index in range(4):
        one = slice(index, index + 1)
        alone = class_activation_maps(model, model, images[one], classes[one], layer)
        torch.testing.assert_close(together[one], alone, rtol=1e-8, atol=1e-10)


def test_maps_span_zero_to_one_and_follow_the_class() -> None:
    model, images = build("convnet"), drawn(4, 1, 16, 16)
    maps = [class_activation_maps(model, model, images, torch.full((4,), c), "features.conv3") for c in (0, 1)]
    for each in maps:
        torch.testing.assert_close(each.amax(dim=(1, 2)), torch.ones(4))
        torch.testing.assert_close(each.amin(dim=(1, 2)), torch.zeros(4))
    assert (maps[0] - maps[1]).abs().amax(dim=(1, 2)).min() > 0.05


def test_leaves_no_hooks_gradients_modes_or_buffers() -> None:
    model = build("convnet")
    model.features.norm1.eval()
    modes = {key: module.training for key, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    images = drawn(2, 1, 16, 16)
    class_activation_maps(model, model, images, torch.tensor([0, 1]), "features")
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert images.grad is None


def test_the_state_is_what_counts_not_the_model() -> None:
    model, other, images = build("convnet"), build("convnet", seed=1), drawn(2, 1, 16, 16)
    classes = torch.tensor([0, 1])
    expected = class_activation_maps(other, other, images, classes, "features")
    assert torch.equal(class_activation_maps(model, other.state_dict(), images, classes, "features"), expected)
    assert not torch.equal(class_activation_maps(model, model, images, classes, "features"), expected)


def test_one_logit_is_negated_for_class_zero() -> None:
    """A model with logits (-l, l) asks the same question of two outputs."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.Flatten())
    one = nn.Sequential(trunk, nn.Linear(4 * 64, 1))
    two = nn.Sequential(trunk, nn.Linear(4 * 64, 2))
    with torch.no_grad():
        two[1].weight.copy_(torch.cat([-one[1].weight, one[1].weight]))
        two[1].bias.copy_(torch.cat([-one[1].bias, one[1].bias]))
    images, classes = drawn(3, 1, 8, 8), torch.tensor([0, 1, 0])
    ours = class_activation_maps(one, one, images, classes, "0.1")
    torch.testing.assert_close(ours, class_activation_maps(two, two, images, classes, "0.1"))
    assert not torch.allclose(ours[0], class_activation_maps(one, one, images, 1 - classes, "0.1")[0])


@pytest.mark.parametrize("score", [200.0, -200.0])
def test_extreme_scores_leave_the_map_unchanged(score: float) -> None:
    """exp(200) is infinite and exp(-200) zero in single precision; the map is scaled to [0, 1] afterwards."""
    activations, gradients = drawn(1, 3, 4, 4).abs(), drawn(1, 3, 4, 4, seed=1).abs()
    gradients[0, 0, 0, 0] = 0
    maps = [
        scale_to_image(grad_cam_plus_plus(activations, gradients, torch.tensor([each])), (8, 8))
        for each in (0.0, score)
    ]
    assert maps[0].max() == 1
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "classes", "error", "message"),
    [
        ("feature", [0, 1], ModelError, "no module 'feature'"),
        ("classifier", [0, 1], ModelError, "no convolutional feature map"),
        ("features", [0, 3], DataError, "0 to 2"),
    ],
)
def test_what_does_not_fit_is_one_line(layer: str, classes: list[int], error: type[Exception], message: str) -> None:
    model = build("convnet")
    with pytest.raises(error, match=message) as raised:
        class_activation_maps(model, model, drawn(2, 1, 16, 16), torch.tensor(classes), layer)
    assert "\n" not in str(raised.value)
    assert not any(module._forward_hooks for module in model.modules())

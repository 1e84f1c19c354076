"""The registry: repeatable initialisation, shapes, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shadow_defense.errors import ModelError
from shadow_defense.models.build import MODELS, build_model
from shadow_defense.models.settings import ModelSettings

VARIANTS = [(name, kind) for name, entry in sorted(MODELS.items()) for kind in entry.normalisations]


def build(name: str, normalisation: str, *, size: int = 32, channels: int = 3, seed: int = 0, **more) -> nn.Module:
    chosen = ModelSettings(name=name, normalisation=normalisation, **more)
    return build_model(chosen, channels=channels, classes=5, image_size=(size, size), seed=seed)


@pytest.mark.parametrize(
    ("name", "normalisation"),
    [
        ("convnet", "none"),
        ("densenet121", "group"),
        ("lenet", "none"),
        ("preactresnet18", "group"),
        ("resnet18", "batch"),
    ],
)
def test_initialisation_depends_on_the_seed_alone(name: str, normalisation: str) -> None:
    torch.manual_seed(1)
    first = build(name, normalisation).state_dict()
    torch.manual_seed(2)
    state_before = torch.get_rng_state()
    second = build(name, normalisation).state_dict()
    assert torch.equal(torch.get_rng_state(), state_before)
    other = build(name, normalisation, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    weights = [key for key, tensor in first.items() if tensor.dim() > 1]
    assert not any(torch.equal(first[key], other[key]) for key in weights)


def test_accelerators_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.manual_seed`` would reset the caller's generators on every GPU, which no fork of the CPU's restores."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    assert seeded == [3]
    build("lenet", "none")
    assert seeded == [3]


def test_random_state_is_restored_when_building_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_and_fail(*_: object, **__: object) -> nn.Module:
        torch.rand(1)
        raise ModelError("refused")

    failing = replace(MODELS["convnet"], build=draw_and_fail)
    monkeypatch.setattr(MODELS, "find", lambda name: failing)
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="refused"):
        build("convnet", "group")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (28, 1), (32, 3), (64, 3), (224, 1)])
@pytest.mark.parametrize(("name", "normalisation"), VARIANTS)
def test_logits_and_gradients_at_every_size(name: str, normalisation: str, size: int, channels: int) -> None:
    model = build(name, normalisation, size=size, channels=channels)
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    # Two different images must be told apart, by every parameter tensor.
    gradients = torch.autograd.grad((logits[0] - logits[1]).square().sum(), list(model.parameters()))
    reached = {key: bool(g.any()) for (key, _), g in zip(model.named_parameters(), gradients, strict=True)}
    # The last bias adds the same to both logits.
    assert [key for key, moved in reached.items() if not moved] == [list(reached)[-1]]


@settings(max_examples=15)
@given(name=st.sampled_from(["convnet", "lenet"]), height=st.integers(8, 70), width=st.integers(8, 70))
def test_small_models_take_any_rectangle(name: str, height: int, width: int) -> None:
    chosen = ModelSettings(name=name, normalisation="none", width=8)
    model = build_model(chosen, channels=1, classes=2, image_size=(height, width), seed=0)
    assert model(torch.zeros(1, 1, height, width)).shape == (1, 2)


def test_what_pre_activation_adds_to_is_handed_on_as_it_is() -> None:
    """Where blocks add nothing there is no ReLU on the way, and a shape changes by a convolution of h."""
    model = build("preactresnet18", "group", size=16)
    for block in model.blocks:
        nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    same = model.blocks[:2](features)
    assert torch.equal(same, features) and (same < 0).any()
    third = model.blocks[2]
    active = torch.relu(nn.functional.group_norm(features, 8, third.norm1.weight, third.norm1.bias))
    expected = nn.functional.conv2d(active, third.shortcut.weight, stride=2)
    torch.testing.assert_close(third(features), expected)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
@pytest.mark.parametrize(("size", "stem"), [(8, "small"), (32, "imagenet"), (33, "imagenet"), (95, "auto")])
def test_smallest_images(name: str, size: int, stem: str) -> None:
    model = build(name, "group", size=size, stem=stem)
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize(("name", "normalisation"), VARIANTS)
def test_only_the_chosen_normalisation_is_in_the_model(name: str, normalisation: str) -> None:
    modules = list(build(name, normalisation).modules())
    batch = sum(isinstance(module, _BatchNorm) for module in modules)
    group = sum(isinstance(module, nn.GroupNorm) for module in modules)
    # ResNet-18: stem, 16 in the blocks, 3 shortcuts; with pre-activation 16 and the last.
    # DenseNet-121: stem, 2 in each of 58 layers, 3 transitions, last.
    layers = {"convnet": 5, "lenet": 0, "resnet18": 20, "preactresnet18": 17, "densenet121": 121}[name]
    assert (batch, group) == {"batch": (layers, 0), "group": (0, layers), "none": (0, 0)}[normalisation]


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "densenet121"])
def test_normalisation_does_not_shift_the_other_weights(name: str) -> None:
    """Group norm draws nothing: two variants of one seed start from the same convolutions."""
    batch, group = (dict(build(name, kind).named_parameters()) for kind in ("batch", "group"))
    assert batch.keys() == group.keys()
    assert all(torch.equal(batch[key], group[key]) for key in batch)


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "densenet121"])
@pytest.mark.parametrize(("size", "shape"), [(95, (64, 3, 3, 3)), (96, (64, 3, 7, 7))])
def test_stem_follows_the_size(name: str, size: int, shape: tuple[int, ...]) -> None:
    model = build(name, "group", size=size)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape == shape
    # 95 px: no halving before the blocks; 96 px: two halvings.
    seen: list[int] = []
    first_block = {"resnet18": "layer1", "preactresnet18": "blocks", "densenet121": "features.denseblock1"}
    blocks = model.get_submodule(first_block[name])
    blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    model(torch.zeros(1, 3, size, size))
    assert seen == [{95: 95, 96: 24}[size]]


def test_parameter_counts() -> None:
    """Counted by hand from the layers' shapes."""
    convolutions = 27 * 64 + 2 * 576 * 64 + 576 * 128 + 1152 * 128
    counts = {
        ("convnet", "none"): convolutions + 3 * 64 + 2 * 128 + 2048 * 5 + 5,
        ("convnet", "group"): convolutions + 2 * (3 * 64 + 2 * 128) + 2048 * 5 + 5,
        ("lenet", "none"): 75 * 12 + 12 + 2 * (300 * 12 + 12) + 768 * 5 + 5,
    }
    for (name, kind), expected in counts.items():
        assert sum(parameter.numel() for parameter in build(name, kind).parameters()) == expected


def test_lenet_parameters_are_uniform() -> None:
    values = torch.cat([parameter.flatten() for parameter in build("lenet", "none", size=224).parameters()]).double()
    assert values.abs().max() <= 0.5
    # 190 thousand draws: the mean deviates by sqrt(1/12/n) = 7e-4, the variance by sqrt(1/180/n) = 2e-4.
    assert abs(values.mean()) < 4 * 7e-4
    assert abs(values.var() - 1 / 12) < 4 * 2e-4


@pytest.mark.parametrize("name", ["convnet", "lenet"])
def test_forward_is_the_written_function(name: str) -> None:
    """The layers called one by one through torch's functional interface give the same logits."""
    model = build(name, "none")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    *convolutions, (weight, bias) = [
        (module.weight, module.bias) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    features = images
    for index, (kernel, offset) in enumerate(convolutions):
        if name == "lenet":
            features = F.conv2d(features, kernel, offset, stride=(2, 2, 1)[index], padding=2).sigmoid()
        else:
            features = F.conv2d(features, kernel, offset, stride=2 if index in (1, 3, 4) else 1, padding=1).relu()
    assert features.shape[1:] == {"lenet": (12, 8, 8), "convnet": (128, 4, 4)}[name]
    torch.testing.assert_close(model(images), F.linear(features.flatten(1), weight, bias))


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4.1.bn1"), ("densenet121", "features.norm5")])
def test_hooks_keep_what_they_saw(name: str, layer: str) -> None:
    """A ReLU in place would overwrite the features that a hook on the layer before it has kept."""
    model = build(name, "group")
    kept: list[torch.Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    model(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert (kept[0] < 0).any()


@pytest.mark.parametrize(
    ("given_settings", "size", "message"),
    [
        (
            {"name": "resnet81"},
            32,
            r"unknown model 'resnet81': did you mean 'resnet18'\? valid are: convnet, densenet121",
        ),
        ({"name": "lenet"}, 32, "lenet cannot have normalisation 'group': set model.normalisation to none"),
        ({"name": "resnet18", "normalisation": "none"}, 32, "set model.normalisation to batch or group"),
        ({"name": "convnet", "stem": "small"}, 32, "convnet has no stem 'small': leave model.stem at auto"),
        ({"name": "convnet", "weights": "w.pth"}, 32, "convnet has no ImageNet weights.* densenet121 or resnet18"),
        ({"name": "resnet18", "weights": "w.pth"}, 32, "set model.normalisation to batch or leave model.weights"),
        ({"name": "resnet18"}, 7, "images of 7 x 7 pixels are too small.* at least 8"),
        ({"name": "densenet121", "stem": "imagenet"}, 31, "at least 32 a side.* set model.stem to small"),
    ],
)
def test_refusals_are_one_line_that_helps(given_settings: dict, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_model(ModelSettings(**given_settings), channels=3, classes=2, image_size=(size, size), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "classes"), [(0, 2), (3, 1)])
def test_no_channels_or_one_class_is_refused(channels: int, classes: int) -> None:
    with pytest.raises(ModelError, match="expected at least 1 channel and 2 classes"):
        build_model(ModelSettings(), channels=channels, classes=classes, image_size=(32, 32), seed=0)


@pytest.mark.parametrize("wrong", [{"width": 12}, {"width": 0}, {"depth": 18}, {"normalisation": "layer"}])
def test_settings_refuse_what_they_do_not_know(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ModelSettings(**wrong)

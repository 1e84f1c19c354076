"""ImageNet weights: torchvision's names and function, and every way in which a file may not fit."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shadow_defense.errors import ModelError
from shadow_defense.models.build import MODELS, build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.weights import load_imagenet_weights

NAMES = ["resnet18", "densenet121"]
STEM = {"resnet18": "conv1.weight", "densenet121": "features.conv0.weight"}
HEAD = {"resnet18": "fc", "densenet121": "classifier"}
# SHA-256 of the lines "name shape" of the state dicts of torchvision 0.28.0.
TORCHVISION_TENSORS = {
    "resnet18": (122, "84fb10d9c6905a1cbb020b284537dc97c4f4ec55fb2a780a41152a23a2dd0e9d"),
    "densenet121": (727, "aa0fd9923b0003b813430af55d9350bcf2555273dedae08042b92025727ccac8"),
}


def build(name: str, weights: Path | None = None, **changes) -> nn.Module:
    """Three channels and the ImageNet stem unless said otherwise."""
    sizes = {"channels": 3, "classes": 5, "image_size": (32, 32), "seed": 0}
    sizes.update({key: changes.pop(key) for key in list(changes) if key in sizes})
    chosen = {"normalisation": "batch", "stem": "imagenet", **changes}
    return build_model(ModelSettings(name=name, weights=weights, **chosen), **sizes)


def torchvision_name(name: str) -> str:
    """Written anew, not taken from the code under test."""
    name = re.sub(r"^class_layers\.out", "classifier", name)
    return re.sub(r"(denselayer\d+)\.layers", r"\1", name)


def torchvision_state(name: str, classes: int = 1000) -> dict[str, Tensor]:
    """What a file of ImageNet weights holds: every tensor random, buffers too."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for key, tensor in build(name, classes=classes).state_dict().items():
        if tensor.is_floating_point():
            # Positive scales and variances, and about the spread of a trained layer.
            spread = 0.02 if tensor.dim() > 1 else 0.2
            tensor = spread * torch.randn(tensor.shape, generator=generator) + (tensor.dim() == 1)
        state[torchvision_name(key)] = tensor
    return state


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def state(name: str, module_states: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return dict(module_states[name])


@pytest.fixture(scope="module")
def module_states() -> dict[str, dict[str, Tensor]]:
    return {name: torchvision_state(name) for name in NAMES}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
    def save(state: dict[str, Tensor]) -> Path:
        save_file(state, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return save


@pytest.fixture(scope="module")
def torchvision_models() -> ModuleType:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: its networks cannot be compared with")
    try:
        import torchvision.models as models
    except RuntimeError:
        # A torchvision built for CUDA beside a CPU-only torch looks for operators that it cannot load.
        for loaded in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import torchvision.models as models
    return models


def test_tensor_names_and_shapes_are_torchvisions(name: str) -> None:
    model = build(name, classes=1000)
    lines = [f"{torchvision_name(key)} {tuple(tensor.shape)}" for key, tensor in model.state_dict().items()]
    count, digest = TORCHVISION_TENSORS[name]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_function_as_torchvision(
    name: str, training: bool, torchvision_models: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision_models, name)(weights=None, num_classes=5).train(training)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build(name, tmp_path / "weights.pth").train(training)
    images = torch.randn(3, 3, 75, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images))
    # After a step in train mode the running statistics agree as well.
    theirs_after = theirs.state_dict()
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs_after[torchvision_name(key)])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_tensor_is_loaded_but_a_head_of_another_size(
    name: str, suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = {torchvision_name(key): tensor for key, tensor in build(name, path).state_dict().items()}
    fresh = {torchvision_name(key): tensor for key, tensor in build(name).state_dict().items()}
    for key, tensor in loaded.items():
        expected = fresh[key] if key.startswith(HEAD[name]) else state[key]
        assert torch.equal(tensor, expected), key


def test_head_of_the_same_size_is_loaded(name: str, saved: Callable[..., Path]) -> None:
    state = torchvision_state(name, classes=5)
    loaded = build(name, saved(state)).state_dict()
    weight = {"resnet18": "fc.weight", "densenet121": "class_layers.out.weight"}[name]
    assert torch.equal(loaded[weight], state[f"{HEAD[name]}.weight"])


@pytest.mark.slow
def test_one_channel_gives_what_three_equal_channels_give(
    name: str, state: dict[str, Tensor], saved: Callable[..., Path]
) -> None:
    path = saved(state)
    grey = build(name, path, channels=1).double().eval()
    colour = build(name, path, channels=3).double().eval()
    stem = {STEM[name]: colour.state_dict()[STEM[name]]}
    # All but the stem is the same: the heads are fresh, and drawn after stems of different sizes.
    colour.load_state_dict({**grey.state_dict(), **stem})
    images = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    repeated = images.expand(-1, 3, -1, -1)
    # The summed weights were rounded to float32.
    torch.testing.assert_close(grey(images), colour(repeated), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(grey(images), grey(2 * images), rtol=1e-2)


def test_small_stem_stays_fresh_and_the_rest_is_loaded(
    name: str, state: dict[str, Tensor], saved: Callable[..., Path]
) -> None:
    loaded = build(name, saved(state), stem="small").state_dict()
    assert torch.equal(loaded[STEM[name]], build(name, stem="small").state_dict()[STEM[name]])
    others = [key for key in loaded if torchvision_name(key) != STEM[name] and "class_layers" not in key]
    assert all(torch.equal(loaded[key], state[torchvision_name(key)]) for key in others if not key.startswith("fc."))


def test_small_stem_of_a_file_is_loaded(name: str, state: dict[str, Tensor], saved: Callable[..., Path]) -> None:
    """Weights that were pre-trained with the small stem are not thrown away."""
    state[STEM[name]] = torch.rand(64, 3, 3, 3)
    assert torch.equal(build(name, saved(state), stem="small").state_dict()[STEM[name]], state[STEM[name]])
    with pytest.raises(ModelError, match=rf"'{STEM[name]}' has shape \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)"):
        build(name, saved(state), stem="imagenet")


@pytest.mark.slow
def test_names_with_dots_of_the_published_densenet_file(tmp_path: Path) -> None:
    """torchvision's own file says ``denselayer1.norm.1.weight`` and has no counters of batches."""
    state = torchvision_state("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert len(old) == 727 - 121
    # That file is of the age before zip archives, too.
    torch.save(old, tmp_path / "densenet121-a639ec97.pth", _use_new_zipfile_serialization=False)
    loaded = build("densenet121", tmp_path / "densenet121-a639ec97.pth").state_dict()
    key = "features.denseblock4.denselayer16.layers.conv2.weight"
    assert torch.equal(loaded[key], state[torchvision_name(key)])


@pytest.mark.slow
def test_misfits_are_named(name: str, state: dict[str, Tensor], saved: Callable[..., Path]) -> None:
    victim = {"resnet18": "layer2.0.conv1.weight", "densenet121": "features.denseblock2.denselayer1.conv1.weight"}[name]
    shape = re.escape(str(tuple(state[victim].shape)))
    head = f"{HEAD[name]}.weight"
    not_finite = state[victim].clone()
    not_finite[0, 0, 0, 0] = float("nan")
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({key: tensor for key, tensor in state.items() if key != victim}, f"tensor '{victim}' is missing"),
        ({**state, "extra.weight": torch.zeros(1)}, r"tensor 'extra\.weight' is unexpected"),
        ({**state, victim: torch.zeros(2, 3)}, rf"tensor '{victim}' has shape \(2, 3\), expected {shape}"),
        ({**state, victim: not_finite}, f"tensor '{victim}' is not finite"),
        ({key: tensor for key, tensor in state.items() if key != head}, f"tensor '{head}' is missing"),
        ({**state, head: torch.zeros(1000, 7)}, rf"tensor '{head}' has shape \(1000, 7\)"),
        ({**state, STEM[name]: torch.zeros(64, 4, 7, 7)}, rf"tensor '{STEM[name]}' has shape \(64, 4, 7, 7\)"),
        ({key: tensor for key, tensor in state.items() if key != STEM[name]}, f"tensor '{STEM[name]}' is missing"),
    ]
    for wrong, message in cases:
        with pytest.raises(ModelError, match=f"do not fit {name}: {message}") as caught:
            build(name, saved(wrong))
        assert "\n" not in str(caught.value)


def test_one_channel_file_does_not_fit_three_channels(
    name: str, state: dict[str, Tensor], saved: Callable[..., Path]
) -> None:
    state[STEM[name]] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(ModelError, match=r"has shape \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"):
        build(name, saved(state))


class RunsCode:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_pickles_with_code_are_refused_unrun(tmp_path: Path) -> None:
    torch.save({"fc.weight": RunsCode(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"refused weights .*evil\.pth: it asks for '\w+\.mkdir'") as caught:
        build("resnet18", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_files_that_are_no_weights(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"fc.weight": torch.zeros(5, 512)}, whole)
    contents = {
        "cut.pth": whole.read_bytes()[:300],
        "cut.safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00{",
        "empty.pth": b"",
        "empty.safetensors": b"",
        "text.pth": b"<html>not found</html>",
    }
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ModelError, match=f"weights .*{re.escape(file)}") as caught:
            build("resnet18", tmp_path / file)
        assert "\n" not in str(caught.value)
    torch.save({"state_dict": {"fc.weight": torch.zeros(5, 512)}, "epoch": 3}, tmp_path / "checkpoint.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for path, message in [
        ("checkpoint.pth", "entry 'state_dict' is a dict, expected a tensor"),
        ("list.pth", "hold a list: expected a dict"),
        ("absent.pth", "no weights at"),
        ("weights.onnx", r"expected a \.safetensors, \.pth or \.pt file"),
        (".", r"expected a \.safetensors"),
    ]:
        with pytest.raises(ModelError, match=message):
            build("resnet18", tmp_path / path)


def test_nothing_is_loaded_when_something_does_not_fit(
    state: dict[str, Tensor], name: str, saved: Callable[..., Path]
) -> None:
    model = build(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    names = MODELS[name].imagenet
    assert names is not None
    with pytest.raises(ModelError):
        load_imagenet_weights(model, names, saved({**state, "extra": torch.zeros(1)}))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.slow
def test_monais_own_names_load_too(name: str, saved: Callable[[dict[str, Tensor]], Path]) -> None:
    """And with what DataParallel and torch.compile put in front."""
    trained = torchvision_state(name)
    ours = dict(zip(build(name).state_dict(), trained.values(), strict=True))
    expected = build(name, saved(trained)).state_dict()
    for prefix in ("", "module.", "_orig_mod.module."):
        found = build(name, saved({prefix + key: tensor for key, tensor in ours.items()})).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())

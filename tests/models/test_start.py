"""A model that starts from a state of its own kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shadow_defense.errors import ModelError
from shadow_defense.files import write_tensors
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

SETTINGS = ModelSettings(name="convnet", width=8, normalisation="batch")
DATA = {"channels": 1, "classes": 2, "image_size": (16, 16)}


def test_every_tensor_comes_from_the_file(tmp_path: Path) -> None:
    state = build_model(SETTINGS, **DATA, seed=1).state_dict()
    state["features.norm0.running_mean"] += 1
    write_tensors(tmp_path / "state.safetensors", state)
    started = SETTINGS.model_copy(update={"start": tmp_path / "state.safetensors"})
    found, plain = build_model(started, **DATA, seed=0).state_dict(), build_model(SETTINGS, **DATA, seed=0).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert not torch.equal(plain["classifier.weight"], found["classifier.weight"])


def test_a_state_of_the_wrapped_model_is_one_of_the_model(tmp_path: Path) -> None:
    model = build_model(SETTINGS, **DATA, seed=1)
    torch.save(torch.nn.DataParallel(model).state_dict(), tmp_path / "state.pt")
    started = SETTINGS.model_copy(update={"start": tmp_path / "state.pt"})
    found = build_model(started, **DATA, seed=0).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"classifier.weight": None}, "tensor 'classifier.weight' is missing, unexpected"),
        ({"extra": torch.zeros(1)}, "tensor 'extra' is missing, unexpected"),
        ({"classifier.weight": torch.zeros(3, 64)}, "tensor 'classifier.weight' is missing, unexpected"),
        ({"classifier.bias": torch.tensor([0.0, torch.inf])}, "tensor 'classifier.bias' is not finite"),
    ],
)
def test_another_models_state_is_refused(change: dict[str, torch.Tensor | None], wanted: str, tmp_path: Path) -> None:
    state = {**build_model(SETTINGS, **DATA, seed=1).state_dict(), **change}
    write_tensors(tmp_path / "state.safetensors", {name: t for name, t in state.items() if t is not None})
    settings = SETTINGS.model_copy(update={"start": tmp_path / "state.safetensors"})
    with pytest.raises(ModelError, match=wanted) as error:
        build_model(settings, **DATA, seed=0)
    assert "\n" not in str(error.value)


def test_two_starts_are_refused(tmp_path: Path) -> None:
    settings = ModelSettings(name="resnet18", normalisation="batch", start=tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"no weights at .*a.safetensors"):
        build_model(settings, **DATA, seed=0)
    both = SETTINGS.model_copy(update={"start": tmp_path / "a.safetensors", "weights": tmp_path / "b.pth"})
    with pytest.raises(ModelError, match="ImageNet weights"):
        build_model(both, **DATA, seed=0)

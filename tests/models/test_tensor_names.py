"""Names of wrapped models, and of other libraries, against the model's own."""

from __future__ import annotations

import torch
from torch import Tensor

from shadow_defense.models.build import build_model, conventions
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.tensor_names import under_own_names

OWN = list(
    build_model(
        ModelSettings(name="densenet121", normalisation="batch"), channels=1, classes=2, image_size=(32, 32), seed=0
    ).state_dict()
)


def renamed(*names: str) -> tuple[list[str], tuple[str, ...]]:
    tensors, said = under_own_names({name: torch.zeros(1) for name in names}, OWN, conventions())
    return list(tensors), said


def test_wrappers_are_taken_off_wherever_they_are() -> None:
    own = "features.denseblock1.denselayer1.layers.norm1.weight"
    for name in (f"module.{own}", f"_orig_mod.module.{own}", own.replace(".layers", "._orig_mod.layers")):
        assert renamed(name)[0] == [own]
    assert renamed(own) == ([own], ())
    assert renamed("module.other")[0] == ["module.other"]


def test_torchvisions_names_are_the_same_layers() -> None:
    found, said = renamed(
        "module.features.denseblock1.denselayer1.norm1.weight",
        # As torchvision's file of weights has it.
        "features.denseblock4.denselayer16.conv.2.weight",
        "classifier.bias",
    )
    assert found == [
        "features.denseblock1.denselayer1.layers.norm1.weight",
        "features.denseblock4.denselayer16.layers.conv2.weight",
        "class_layers.out.bias",
    ]
    assert "'module.' was taken off" in said[0] and "torchvision's names" in said[1]


def test_no_tensor_is_lost_where_two_have_one_name() -> None:
    given: dict[str, Tensor] = {"module.fc.bias": torch.zeros(1), "fc.bias": torch.ones(1)}
    tensors, said = under_own_names(given, ["fc.bias"], ())
    assert tensors == given and said == ()

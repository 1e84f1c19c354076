"""Bad input is refused in one line that says what was given and how to correct it, before anything is changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError, DefenseError, GeneratorError, ModelError, ShadowDefenseError
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.named_state import plain_module
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.batch import as_normalisation, check_round, read_images
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.sample_ids import sample_keys
from shadow_defense.shadow.settings import ShadowSettings
from shadow_defense.shadow.targets import as_labels


def build(channels: int = 1) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8, activation="gelu")
    return build_model(chosen, channels=channels, classes=2, image_size=(16, 16), seed=0)


def guard(channels: int = 1, **changes: Any) -> ShadowGuard:
    generator = DCGANGenerator(image_size=16, channels=channels, z_dim=4, width=4)
    return ShadowGuard(generator, ShadowSettings(**{"latent_iterations": 2, "attack_iterations": 1, **changes}))


def two() -> Tensor:
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def protect(
    guard: ShadowGuard,
    images: Tensor | None = None,
    labels: tuple[int, ...] = (0, 1),
    sample_ids: tuple[str, ...] = ("x1", "x2"),
    **changes: Any,
) -> Tensor:
    model = build()
    given = {"model": model, "global_model": model, "loss_fn": F.cross_entropy, "round": 0, "rounds": 5, **changes}
    return guard.protect(two() if images is None else images, torch.tensor(labels), sample_ids, **given)


def refused(kind: type[ShadowDefenseError], message: str, chosen: ShadowGuard, *args: Any, **changes: Any) -> None:
    synthesis, maps = copy.deepcopy(chosen.synthesis), dict(chosen.noise_maps)
    with pytest.raises(kind, match=message) as raised:
        protect(chosen, *args, **changes)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, synthesis[name]) for name, tensor in chosen.synthesis.items())
    assert chosen.noise_maps == maps
    assert chosen.batches_protected == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_names_the_sample(value: float) -> None:
    images = torch.zeros(2, 1, 16, 16)
    images[1, 0, 3, 4] = value
    refused(DataError, "'x2' holds NaN or infinity", guard(), images)


@pytest.mark.parametrize("labels", [(0, -1), (0, 2), (7, 1)])
@pytest.mark.parametrize("changes", [{}, {"shadow_rounds": 0}])
def test_labels_out_of_range(labels: tuple[int, int], changes: dict[str, Any]) -> None:
    """Also in rounds in which no pseudo attack meets them."""
    chosen = guard(**changes)
    with pytest.raises(DataError) as raised:
        protect(chosen, labels=labels)
    assert "\n" not in str(raised.value)
    assert str(next(label for label in labels if label not in (0, 1))) in str(raised.value)


def test_sample_ids() -> None:
    refused(DataError, "two different images of one batch have the id 'x1'", guard(), two(), sample_ids=("x1", "x1"))
    refused(DataError, "2 images with 1 sample ids", guard(), sample_ids=("x1",))


@pytest.mark.parametrize("round", [-1, 5, 6])
def test_round_out_of_range(round: int) -> None:
    refused(DataError, f"round {round} of 5", guard(), round=round)


def test_generator_that_does_not_fit() -> None:
    refused(GeneratorError, "16 px but the images are 20 px", guard(), torch.zeros(2, 1, 20, 20))
    refused(GeneratorError, "3 channels but the images have 1", guard(channels=3))
    refused(GeneratorError, "square ones", guard(), torch.zeros(2, 1, 16, 8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 20, 20), "16 px but the images are 20 px"),
        (torch.zeros(2, 3, 16, 16), "1 channels but the images have 3"),
    ],
)
def test_encoding_beforehand_is_checked_too(images: Tensor, message: str) -> None:
    with pytest.raises(GeneratorError, match=message):
        guard().encode(images, ("x1", "x2"))


def test_normalisation_of_another_number_of_channels() -> None:
    generator = DCGANGenerator(image_size=16, channels=1, z_dim=4, width=4)
    for mean, std in (((0.5,) * 3, (0.5,)), ((0.5,), (0.5,) * 3)):
        refused(DataError, "3 channels but the images 1", ShadowGuard(generator, mean=mean, std=std))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 16, 16), "expected .n, channels, height, width."),
        (torch.zeros(0, 1, 16, 16), "n >= 1"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "expected floats"),
        (torch.zeros(2, 1, 4, 4), "2 images with 1 sample ids"),
        (torch.zeros(1, 1, 4, 4).to_sparse(), "sparse or quantised"),
    ],
)
def test_shape_and_type_of_images(images: Tensor, message: str) -> None:
    """Checked by hand, because without the tests' import hook nobody looks at the annotations."""
    with pytest.raises(DataError, match=message):
        read_images(images, ("x",), Normalisation((0.5,), (0.5,)))


def test_diverging_pseudo_attack_changes_nothing() -> None:
    refused(DefenseError, "diverged", guard(attack_learning_rate=1e30, attack_iterations=3))


def test_state_of_another_generator() -> None:
    other = ShadowGuard(DCGANGenerator(image_size=16, channels=1, z_dim=5, width=4))
    with pytest.raises(DefenseError, match="another generator"):
        guard().load_state_dict(other.state_dict())


def test_global_state_of_another_model() -> None:
    state = build().state_dict()
    del state["classifier.bias"]
    refused(ModelError, "lacks tensor 'classifier.bias'", guard(), global_model=state)


def test_layer_that_the_model_does_not_have() -> None:
    with pytest.raises(ModelError, match="no module 'layer5'"):
        protect(guard(cam_layer="layer5"))


@pytest.mark.parametrize("round", [0.5, "0", None, float("nan")])
def test_a_round_that_is_no_whole_number_is_refused(round: Any) -> None:
    with pytest.raises(DataError, match="whole numbers"):
        check_round(round, 2)


def test_images_without_values_are_refused() -> None:
    with pytest.raises(DataError, match="'meta'"):
        read_images(torch.zeros(1, 1, 8, 8, device="meta"), ["a"], as_normalisation(0.5, 0.5))


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.complex64), torch.zeros(2).to_sparse()])
def test_labels_that_are_no_plain_numbers_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match="give plain whole numbers or floats"):
        as_labels(labels, 2)


@pytest.mark.parametrize(
    ("sample_ids", "message"),
    [({"b", "a"}, "a set: give a list"), ({"a": 1}, "a dict: give a list"), ([10**5000], "of thousands of digits")],
)
def test_ids_without_an_order_or_an_end_are_refused(sample_ids: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_keys(sample_ids)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="the model is a str: expected"):
        plain_module("resnet")

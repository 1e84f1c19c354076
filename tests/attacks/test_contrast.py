"""The contrast of what was rebuilt, of networks whose updates tell it and of those whose do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.attacks.clients import lenet, observation, private, public
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings, reconstruct
from shadow_defense.attacks.contrast import UNTOLD, contrast, with_contrast
from shadow_defense.attacks.misfit import JUDGE, misfit
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings, NormalisationKind
from shadow_defense.progress import Task


def network(normalisation: NormalisationKind) -> nn.Module:
    settings = ModelSettings(name="convnet", normalisation=normalisation, activation="gelu", width=8)
    return build_model(settings, channels=1, classes=2, image_size=(16, 16), seed=0)


def at(seen: Observation, factor: float, labels: tuple[int, ...] = (1,)) -> Reconstruction:
    """The client's own images, so many times as strong as they are around the mean brightness."""
    normalised = seen.normalisation.apply(private(len(labels)))
    return Reconstruction(seen.normalisation.invert(factor * normalised), torch.tensor(labels), 0.0, 1, 0.0)


def of(seen: Observation, images: Tensor) -> list[float]:
    return contrast(seen.normalisation.apply(images)).tolist()


@pytest.mark.parametrize("normalisation", ["group", "batch"])
def test_where_the_update_does_not_tell_it_an_image_is_given_the_usual_one(normalisation: NormalisationKind) -> None:
    seen, _ = observation(network(normalisation), threat=JUDGE)
    usual = of(seen, private())[0]
    faint = at(seen, 0.4)
    found = with_contrast(faint, seen, usual, 0)
    assert psnr(found.images, private())[0] > 50 > 20 > psnr(faint.images, private())[0]
    assert len(found.notes) == len(faint.notes) + 1


@pytest.mark.parametrize("model", [network("none"), lenet()], ids=["convnet", "lenet"])
def test_where_the_update_tells_it_the_image_stays(model: nn.Module) -> None:
    """A search that matched such an update found the contrast as well, whatever other images have."""
    seen, _ = observation(model, threat=JUDGE)
    truth = at(seen, 1.0)
    assert with_contrast(truth, seen, 0.5, 0) is truth


def test_each_image_of_a_client_is_given_its_own_factor() -> None:
    seen, _ = observation(network("group"), (0, 1), threat=JUDGE)
    strong = at(seen, 1.0, (0, 1))
    faint = replace(strong, images=torch.cat([at(seen, 0.3).images, strong.images[1:]]))
    assert of(seen, with_contrast(faint, seen, 0.5, 0).images) == pytest.approx([0.5, 0.5], rel=1e-3)


def test_what_explains_nothing_is_left_near_the_mean() -> None:
    """Another image than the client's says little of it, at whatever contrast: half of the usual one at most."""
    seen, _ = observation(network("group"), threat=JUDGE)
    other = replace(at(seen, 1.0), images=1 - public()[:1], labels=torch.tensor([0]))
    found = with_contrast(other, seen, 1.0, 0)
    assert of(seen, found.images)[0] < 0.5


def test_who_does_not_know_the_local_training_cannot_ask() -> None:
    seen, _ = observation(network("group"), threat="eavesdropper")
    faint = at(seen, 0.4)
    assert with_contrast(faint, seen, 1.0, 0) is faint


def rebuilt(attack: str, seen: Observation, options: dict[str, object], *, contrast: bool = True) -> Reconstruction:
    settings = AttackSettings(attack=attack, options=options, contrast=contrast, threat_model=seen.threat_model.name)
    return reconstruct(settings, seen, 0, Task())


def test_a_plain_search_is_given_it_too_and_left_as_it_ended_where_asked() -> None:
    seen, _ = observation(network("group"))
    options = {"variant": "fast", "iterations": 100}
    usual = rebuilt("inverting-gradients", seen, options)
    ended = rebuilt("inverting-gradients", seen, options, contrast=False)
    assert UNTOLD in usual.notes
    assert UNTOLD not in ended.notes
    explained = 1 - (misfit(seen, ended, 0) or 0)
    assert of(seen, usual.images)[0] == pytest.approx((seen.usual_contrast or 0) * explained, abs=0.1)
    assert abs(of(seen, ended.images)[0] - of(seen, usual.images)[0]) > 0.1


def test_who_has_no_public_images_leaves_it() -> None:
    """A normalisation by conventional numbers says nothing of how strong these images are."""
    seen, _ = observation(network("group"))
    options = {"variant": "fast", "iterations": 5}
    assert UNTOLD not in rebuilt("inverting-gradients", replace(seen, usual_contrast=None), options).notes
    assert observation(network("group"), threat="informed eavesdropper")[0].usual_contrast is None


@pytest.mark.parametrize(
    ("withheld", "weight", "given"), [(False, 0.01, False), (False, 0.0, True), (True, 0.01, True)]
)
@pytest.mark.parametrize("attack", ["gradinversion", "gradinversion-group"])
@pytest.mark.parametrize("adaptive", [None, {}], ids=["plain", "adaptive"])
def test_statistics_that_tell_it_are_believed(
    adaptive: dict[str, object] | None, attack: str, withheld: bool, weight: float, given: bool
) -> None:
    """Batch norm's buffers hold the contrast of what the client trained on, for who matches them."""
    seen, _ = observation(network("batch"), threat=JUDGE)
    if withheld:
        parameters = {name for name, _ in seen.model.named_parameters()}
        kept = {name: tensor for name, tensor in seen.update.tensors.items() if name in parameters}
        absent = tuple(sorted(seen.update.tensors.keys() - kept.keys()))
        seen = replace(seen, update=replace(seen.update, tensors=kept, withheld=absent))
    options = {"iterations": 3, "batch_norm": weight}
    settings = AttackSettings(attack=attack, options=options, adaptive=adaptive, threat_model=JUDGE)
    assert (UNTOLD in reconstruct(settings, seen, 0, Task()).notes) == given


def test_only_searches_of_pixels_leave_it_open() -> None:
    """A generator's images, and those of a network that has learned from others, have the contrast of what it saw."""
    assert AttackSettings(attack="dlg").sets_contrast
    assert not AttackSettings(attack="model-based").sets_contrast
    assert not AttackSettings(attack="learning-to-invert", threat_model="server with auxiliary data").sets_contrast

"""Networks of removers are trained where they are put; images come from the host's memory and go back there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.elsewhere import DEVICES
from tests.protection.gaussian_images import draws, gaussian_images
from torch import Tensor

from shadow_defense.attacks.removers import code_inversion
from shadow_defense.attacks.removers.code_inversion import CodeInversion
from shadow_defense.attacks.removers.suite import Knowledge, removers_for
from shadow_defense.attacks.removers.unet import UNet
from shadow_defense.attacks.removers.unknown import learned_from_halves
from shadow_defense.attacks.removers.verifier import _embedding, train_verifier
from shadow_defense.data.dataset import Normalisation
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.placement import CPU
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys
from shadow_defense.protection.directions import Classifier, labels_for, task_directions, train_classifier
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening

PUBLIC, CLEAN = gaussian_images(96, 0), gaussian_images(6, 1)
LABELS = torch.arange(96) % 2
WHITENING = measure_whitening(PUBLIC)
TEXTURE = White(WHITENING, 0.3)
PROTECTED = TEXTURE.protect(CLEAN, draws(0, 6))


def knowledge(device: torch.device) -> Knowledge:
    """Two images of each patient."""
    return Knowledge(PUBLIC, LABELS, 2, tuple(f"patient {place // 2}" for place in range(96)), device)


def learned(device: torch.device) -> list[Tensor]:
    removal = removers_for(TEXTURE, knowledge(device), seed=0, steps=2)["learned"].remove(PROTECTED, LABELS[:6])
    return [removal.estimates, removal.doubt]


def without_a_copy(device: torch.device) -> list[Tensor]:
    return [learned_from_halves(PROTECTED, CLEAN, LABELS[:6], 2, seed=0, steps=2, device=device)]


def verified(device: torch.device) -> list[Tensor]:
    verifier = train_verifier(TEXTURE, knowledge(device), seed=0, steps=2)
    assert verifier is not None
    return [verifier.similarity(PROTECTED, CLEAN)]


def directed(device: torch.device) -> list[Tensor]:
    as_they_are = Normalisation((0.0,), (1.0,))
    images = PUBLIC + 0.3 * LABELS[:, None, None, None]
    model = train_classifier(images, LABELS, as_they_are, seed=0, epochs=2, device=device)
    classifier = Classifier(model, as_they_are)
    known = labels_for(classifier, images, None)
    # An eigenvector has no sign.
    spared = task_directions(model, images, known, as_they_are, WHITENING, count=1, seed=0)
    return [known, spared @ spared.T]


def inverted(device: torch.device) -> list[Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = DCGANGenerator(image_size=16, z_dim=3, width=4)
    public = torch.nn.functional.pad(PUBLIC, (2, 2, 2, 2), mode="replicate")
    texture = Decoy(measure_whitening(public), GeneratedDecoys(generator), 0.6, 0.1)
    protected = texture.protect(public[:6], draws(0, 6))
    removal = CodeInversion(texture, seed=0, device=device).remove(protected, LABELS[:6])
    return [removal.estimates, removal.doubt]


@DEVICES
@pytest.mark.parametrize("made", [learned, without_a_copy, verified, directed, inverted])
def test_the_same_is_made_on_every_device(
    made: Callable[[torch.device], list[Tensor]],
    device: Callable[[], Any],
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_inversion, "STARTS", 2)
    monkeypatch.setattr(code_inversion, "TRIAL", 2)
    monkeypatch.setattr(code_inversion, "ITERATIONS", 2)
    with device() as place:
        found = made(place)
    for ours, theirs in zip(found, made(CPU), strict=True):
        assert type(ours) is Tensor and ours.device.type == "cpu"
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_networks_of_removers_ask_the_host_for_no_value() -> None:
    """On torch's own meta device, which has none: what looked at one would wait for a CUDA device in every step."""
    with torch.device("meta"):
        planes = torch.empty(2, 4, 13, 13)
        assert UNet(4, 1, 8)(planes).shape == (2, 1, 13, 13)
        assert _embedding(4)(planes).shape[0] == 2

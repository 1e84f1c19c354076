"""A malicious server's imprint: its layer by hand, what it reads, and that input-space noise is what it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from tests.attacks.clients import SHAPE, baseline, lenet, normalisation, observation, private, public
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.robbing_the_fed import RobbingTheFed, imprinted_images
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.errors import ModelError, ThreatModelError, UpdateError
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.metrics.psnr import pairwise_psnr, psnr
from shadow_defense.models.build import build_model
from shadow_defense.models.imprint import SMALLNESS, ImprintedModel, brightness_edges
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

MALICIOUS = "malicious server"
EXACT = 1e-4


def edges(bins: int = 64) -> Tensor:
    brightness = normalisation().apply(public()).mean(dim=(1, 2, 3))
    return brightness_edges(float(brightness.mean()), float(brightness.std()), bins)


def convnet(kind: str) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=kind, width=8)
    return build_model(chosen, channels=1, classes=2, image_size=SHAPE[1:], seed=0)


def imprinted(body: nn.Module | None = None, bins: int = 64) -> ImprintedModel:
    return ImprintedModel(body or lenet(), SHAPE, edges(bins))


def nearest(images: Tensor, truths: Tensor) -> Tensor:
    """For each truth the greatest error of the image nearest to it."""
    return (images.unsqueeze(1) - truths.unsqueeze(0)).abs().amax(dim=(2, 3, 4)).min(dim=0).values


def test_bins_are_as_likely_as_each_other() -> None:
    between = brightness_edges(0.2, 0.5, 10)
    assert len(between) == 11 and (between.diff() > 0).all()
    shares = norm.cdf(between.numpy(), 0.2, 0.5)
    assert shares.tolist() == pytest.approx([index / 10 for index in range(11)], abs=1e-6)


def test_the_layer_by_hand() -> None:
    """Brightness 2 is beyond the first of three bins, half through the second, before the third: mean 1.5 / 3."""
    model = ImprintedModel(nn.Flatten(), (1, 2, 2), torch.tensor([0.0, 1.0, 3.0, 5.0]))
    images = torch.tensor([1.0, 2.0, 2.0, 3.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(model(images), (images + 0.5 * model.pattern).flatten(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.pattern, ImprintedModel(nn.Identity(), (1, 2, 2), torch.arange(4.0)).pattern)


def test_bins_by_hand() -> None:
    """Image 4 (slope 2) in bin 0, 5 and 7 (slopes 1 and 3) together in bin 1, none in bin 2, 6 (slope -1) in bin 3."""
    bias = torch.tensor([2.0, 4.0, 0.0, -1.0])
    weight = torch.tensor([8.0, 26.0, 0.0, -6.0]).unsqueeze(1)
    assert imprinted_images(weight, bias, 4).flatten().tolist() == pytest.approx([6.5, 4.0, 6.0])
    assert imprinted_images(weight, bias, 1).flatten().tolist() == pytest.approx([6.5])
    assert imprinted_images(-1e-6 * weight, -1e-6 * bias, 4).flatten().tolist() == pytest.approx([6.5, 4.0, 6.0])


def bins_of(images: Tensor, bins: int) -> list[int]:
    brightness = normalisation().apply(images).mean(dim=(1, 2, 3))
    return torch.bucketize(brightness, edges(bins)).tolist()


@pytest.mark.parametrize(("epochs", "batch_size", "momentum"), [(1, 1, 0.0), (3, 2, 0.0), (5, 8, 0.0), (3, 2, 0.9)])
@pytest.mark.parametrize("body", [lenet(), convnet("batch")], ids=["lenet", "batch"])
def test_several_local_steps_hide_nothing(body: nn.Module, epochs: int, batch_size: int, momentum: float) -> None:
    """Up to twelve steps, in an order that the server does not know: every face that is alone in its bin."""
    if batch_size == 1 and any(isinstance(layer, nn.BatchNorm2d) for layer in body.modules()):
        batch_size = 4
    training = TrainingSettings(learning_rate=0.05, local_epochs=epochs, momentum=momentum)
    model, labels = imprinted(body, bins=256), (0, 1) * 4
    seen, _ = observation(model, labels, threat=MALICIOUS, training=training, batch_size=batch_size)
    assert seen.local_training.steps == epochs * 8 // batch_size
    found = RobbingTheFed().reconstruct(seen, seed=0)
    errors, bins = nearest(found.images, private(8)), bins_of(private(8), 256)
    alone = [bins.count(each) == 1 for each in bins]
    assert sum(alone) >= 6
    assert all(error < 1e-3 for error, own in zip(errors.tolist(), alone, strict=True) if own)


def test_the_first_of_two_in_a_bin_is_read_and_the_unit_is_spent() -> None:
    """In steps of one image each: no mean of the two comes back, and no image reaches the unit any more."""
    model = ImprintedModel(lenet(), SHAPE, torch.tensor([-10.0, 10.0]))
    seen, _ = observation(model, (0, 1), threat=MALICIOUS, epochs=4, batch_size=1)
    found = RobbingTheFed().reconstruct(seen, seed=0)
    assert len(found.images) == 1 and nearest(found.images, private(2)).min() < EXACT
    after = {name: seen.global_state[name] + change for name, change in seen.update.tensors.items()}
    inputs = F.linear(normalisation().apply(public()).flatten(1), after["imprint.weight"], after["imprint.bias"])
    assert not ((inputs > 0) & (inputs < SMALLNESS)).any()


@pytest.mark.parametrize("learning_rate", [0.01, 1.0])
@pytest.mark.parametrize("body", [lenet(), convnet("batch"), convnet("group")], ids=["lenet", "batch", "group"])
def test_one_image_comes_back_exactly(body: nn.Module, learning_rate: float) -> None:
    """Whatever stands behind the layer, ReLU and batch norm included."""
    seen, _ = observation(imprinted(body), threat=MALICIOUS, learning_rate=learning_rate)
    found = RobbingTheFed().reconstruct(seen, seed=0)
    assert nearest(found.images, private()).max() < EXACT
    assert psnr(found.images, private()).item() > baseline() + 40
    assert found.labels.tolist() == [1] and found.matching_loss < 1e-4 and found.notes


def test_a_batch_comes_back_image_by_image() -> None:
    """Every face that is alone in its bin, and each bin that holds one gives one image."""
    seen, _ = observation(imprinted(bins=256), (0, 1) * 4, threat=MALICIOUS)
    found = RobbingTheFed().reconstruct(seen, seed=0)
    errors = nearest(found.images, private(8))
    alone = errors < 1e-3
    assert alone.sum() >= 6
    bins = bins_of(private(8), 256)
    assert alone.tolist() == [bins.count(each) == 1 for each in bins]
    assert len(found.images) == len(found.labels) == len(set(bins))


def test_images_in_one_bin_come_back_as_one_mean() -> None:
    """And a note says so; it is no image of the client's."""
    model = ImprintedModel(lenet(), SHAPE, torch.tensor([-10.0, 10.0]))
    seen, _ = observation(model, (0, 1, 1), threat=MALICIOUS)
    found = RobbingTheFed().reconstruct(seen, seed=0)
    assert len(found.images) == 1
    assert any("1 bins hold all 3 images" in note for note in found.notes)
    assert nearest(found.images, private(3)).min() > 50 * EXACT


class Recording(ShadowDefense):
    """Shadow Defense that remembers what the client trained on."""

    def protect_batch(self, batch: Any, context: Any) -> Any:
        self.protected = super().protect_batch(batch, context)
        return self.protected


@pytest.mark.parametrize("strength", [0.19, 1.0])
def test_input_space_noise_is_what_it_reads(strength: float) -> None:
    """Against an active server Shadow Defense helps by just its noise: the protected image comes back exactly."""
    generator = DCGANGenerator(image_size=16, channels=1, z_dim=6, width=4)
    settings = ShadowSettings(latent_iterations=8, attack_iterations=2, strength=strength)
    units = normalisation()
    guard = ShadowGuard(generator, settings, mean=units.mean, std=units.std, seed=0)
    defense = Recording(guard)
    seen, _ = observation(imprinted(convnet("group")), threat=MALICIOUS, defense=defense)
    found = RobbingTheFed().reconstruct(seen, seed=0)
    protected = units.invert(defense.protected.images)
    assert nearest(found.images, protected.clamp(0, 1)).max() < EXACT
    noise = (protected.clamp(0, 1) - private()).square().mean().sqrt().item()
    assert noise > 50 * EXACT
    # The error of the reconstruction is the noise, no more and no less.
    assert (found.images - private()).square().mean().sqrt().item() == pytest.approx(noise, rel=1e-2)
    assert pairwise_psnr(found.images, protected.clamp(0, 1)).item() > psnr(found.images, private()).item() + 20


def test_the_body_trains_as_any_model() -> None:
    """The client notices nothing: finite losses, gradients for every tensor, the agreed model left alone."""
    body = lenet()
    model = imprinted(body)
    loss = F.cross_entropy(model(normalisation().apply(private(4))), torch.tensor([0, 1, 0, 1]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)
    assert not set(map(id, body.parameters())) & set(map(id, model.parameters()))


def test_a_layer_that_was_read_before_has_nothing_to_say() -> None:
    """The next round from the model that the first left: the image's unit is spent."""
    model = imprinted()
    seen, _ = observation(model, threat=MALICIOUS)
    model.load_state_dict(
        {name: tensor + seen.update.tensors.get(name, 0) for name, tensor in seen.global_state.items()}
    )
    again, _ = observation(model, threat=MALICIOUS)
    with pytest.raises(UpdateError, match="are spent, as after the round for which the layer was planted"):
        RobbingTheFed().reconstruct(again, seed=0)


def test_honest_servers_may_not() -> None:
    seen, _ = observation(imprinted())
    with pytest.raises(ThreatModelError, match="'robbing-the-fed' reads own model"):
        RobbingTheFed().reconstruct(seen, seed=0)
    with pytest.raises(ThreatModelError, match="'robbing-the-fed' reads own model"):
        AttackSettings(attack="robbing-the-fed", threat_model="informed server")
    AttackSettings(attack="robbing-the-fed", threat_model=MALICIOUS)
    assert "labels" not in threat_model(MALICIOUS).granted


def test_a_model_without_an_imprint_is_refused() -> None:
    seen, _ = observation(lenet(), threat=MALICIOUS)
    with pytest.raises(ModelError, match="no imprint"):
        RobbingTheFed().reconstruct(seen, seed=0)

"""Features: what a network sees is kept and nothing else, and an attacker knows it to the last digit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shadow_defense.attacks.removers.choosing import squared_errors
from shadow_defense.attacks.removers.linking import likelihoods
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import breaks_known_draws
from shadow_defense.metrics.linkage import hits
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture
from shadow_defense.protection.constants import Constants, measure_constants, read_constants, write_constants
from shadow_defense.protection.features import Features
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.protection.written import Written
from tests.protection.gaussian_images import SIDE, draws, gaussian_images

SETTINGS = TextureSettings(texture="features", directions=3)


def classed(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images as bytes, half of them with a brighter half that no straight line through the pixels would tell apart."""
    images = gaussian_images(count, seed)
    labels = torch.arange(count) % 2
    bump = 0.15 * torch.sin(torch.arange(SIDE) * 2.1 + torch.arange(count)[:, None])
    images = images + labels[:, None, None, None] * bump[:, None, None, :]
    return (images.clamp(0, 1) * 255).byte(), labels


@pytest.fixture(scope="module")
def constants() -> Constants:
    images, labels = classed(300, 0)
    return measure_constants(SETTINGS, images, labels, seed=0, progress=Progress())


@pytest.fixture(scope="module")
def public() -> Tensor:
    return classed(300, 0)[0].float() / 255


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return classed(120, 5)[0].float() / 255


def texture_of(constants: Constants, strength: float) -> Features:
    nothing = torch.zeros(0, 1, SIDE, SIDE).byte()
    texture = build_texture(SETTINGS, replace(constants, strength=strength), nothing)
    assert isinstance(texture, Features)
    return texture


def test_the_numbers_of_public_images_have_mean_0_and_covariance_i(constants: Constants, public: Tensor) -> None:
    assert constants.reader is not None
    numbers = constants.reader.network.numbers(public).double()
    assert numbers.mean(dim=0).abs().max() < 1e-3
    assert (torch.cov(numbers.T) - torch.eye(3)).abs().max() < 2e-3


def test_the_first_number_is_the_margin_of_the_classes(constants: Constants, clean: Tensor) -> None:
    assert constants.reader is not None
    first = constants.reader.network.numbers(clean)[:, 0]
    labels = torch.arange(len(clean)) % 2
    apart = (first[labels == 1].mean() - first[labels == 0].mean()).abs()
    assert apart > 1.0


def test_nothing_is_kept_but_the_numbers(constants: Constants, clean: Tensor) -> None:
    """``x' - mean`` along V is ``phi + t n1``; everything else is the draws alone."""
    texture = texture_of(constants, 0.7)
    protected = texture.protect(clean, draws(3, len(clean)))
    drawn = texture.added(draws(3, len(clean)))
    whitening = texture.whitening
    left = whitening.coordinates(protected - drawn)
    assert torch.allclose(left @ texture.spared, texture.reader.numbers(clean), atol=1e-3)
    assert (left - left @ texture.spared @ texture.spared.T).abs().max() < 1e-3


def test_numbers_read_before_are_not_read_again_and_never_of_another_image(constants: Constants, clean: Tensor) -> None:
    assert constants.reader is not None
    images = clean.clone()
    first = constants.reader.network.numbers(images)
    assert constants.reader.network.numbers(images) is first
    images[0] += 0.1
    assert not torch.equal(constants.reader.network.numbers(images)[0], first[0])
    assert torch.equal(constants.reader.network.numbers(clean), first)


def test_the_removal_is_the_best_linear_one_of_the_numbers(constants: Constants, public: Tensor) -> None:
    """LMMSE errs no more on public images than least squares on what is left without noise, and than the mean image."""
    texture = texture_of(constants, 0.05)
    protected = texture.protect(public, draws(1, len(public)))
    removed = LinearRemover(texture.whitening, texture.view()).removal.images([protected])
    numbers = torch.cat([texture.reader.numbers(public), torch.ones(len(public), 1)], dim=1).double()
    flat = public.flatten(1).double()
    fitted = (numbers @ torch.linalg.lstsq(numbers, flat).solution).float().view_as(public)
    mean = texture.whitening.mean.unflatten(0, texture.whitening.shape).expand_as(public)
    found, least, nothing = (float(squared_errors(each, public).mean()) for each in (removed, fitted, mean))
    assert least <= found * 1.001
    assert found < 1.02 * least < nothing


def test_an_attacker_who_knows_the_network_finds_weakly_hidden_images_again(
    constants: Constants, clean: Tensor, public: Tensor
) -> None:
    """By likelihood of the numbers, also as they are written; by pictures it hardly could."""
    own = torch.arange(len(clean))
    for strength, least, most in ((0.001, 0.95, 1.0), (5.0, 0.0, 0.15)):
        texture = texture_of(constants, strength)
        protected = texture.protect(clean, draws(2, len(clean)))
        found = float(hits(likelihoods(texture.whitening, [(texture, protected)], clean), own).mean())
        assert least <= found <= most
    texture = texture_of(constants, 0.05)
    written = Written(texture, public)
    seen = written.protect(clean, draws(2, len(clean)))
    protected = texture.protect(clean, draws(2, len(clean)))
    as_drawn, as_written = (
        float(hits(likelihoods(each.whitening, [(each, images)], clean), own).mean())
        for each, images in ((texture, protected), (written, seen))
    )
    assert as_written > 0.6 * as_drawn > 0.2


def test_who_knows_the_draws_sees_what_is_kept(constants: Constants, clean: Tensor) -> None:
    assert breaks_known_draws(texture_of(constants, 1.0), clean, 0)


def test_the_map_shows_the_numbers_and_constants_come_back_from_their_file(
    constants: Constants, clean: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("constants") / "constants.safetensors"
    write_constants(path, constants)
    again = read_constants(path, "")
    assert again is not None
    texture, other = texture_of(constants, 1.0), texture_of(again, 1.0)
    assert torch.equal(texture.kept(clean), other.kept(clean))
    assert torch.allclose(other.module()(clean), texture.tested(clean), atol=1e-5)


def test_in_training_no_step_pays_for_the_network(constants: Constants, clean: Tensor) -> None:
    reading = texture_of(constants, 0.7).module()
    asked = []
    reading.get_submodule("reader").register_forward_hook(lambda *given: asked.append(given))
    assert torch.equal(reading.train()(clean), clean)
    assert not asked
    assert not torch.allclose(reading.eval()(clean), clean, atol=0.1)
    assert len(asked) == 1


def test_the_network_is_a_constant_of_the_model_that_it_goes_before(constants: Constants) -> None:
    """In its state, so that a server has it; and nothing that a step would change or an update could hold."""
    reading = texture_of(constants, 0.7).module()
    assert not list(reading.parameters())
    assert any(name.startswith("reader.features.") for name in reading.state_dict())

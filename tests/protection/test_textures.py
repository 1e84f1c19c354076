"""A texture's view is what its draws do, and a frozen draw is the same for ever and no other image's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys, PoolDecoys
from shadow_defense.protection.frozen import frozen_draws
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import Whitening, measure_whitening
from tests.protection.gaussian_images import SIDE, draws, gaussian_images

POOL = gaussian_images(600, 0)
WHITENING = measure_whitening(POOL)
MAP = torch.linspace(0.2, 1.0, SIDE).expand(SIDE, SIDE)
SPARED = torch.eye(WHITENING.count)[:, [1, 4, 7]]

TEXTURES: dict[str, Callable[[Whitening], Texture]] = {
    "white": lambda whitening: White(whitening, 0.3),
    "white, placed": lambda whitening: White(whitening, 0.3, MAP),
    "covariance": lambda whitening: Covariance(whitening, 0.8, floor=0.02),
    "covariance, placed": lambda whitening: Covariance(whitening, 0.8, placement=MAP),
    "task": lambda whitening: Task(whitening, SPARED, 1.5, floor=0.02),
    "pool": lambda whitening: Decoy(whitening, PoolDecoys(POOL), 0.7, 0.1),
    "pool, placed": lambda whitening: Decoy(whitening, PoolDecoys(POOL), 0.7, 0.1, MAP),
}


@pytest.mark.parametrize("name", TEXTURES)
def test_the_view_is_what_the_draws_do(name: str) -> None:
    """``w' - A w - offset`` has mean 0 and covariance S, whatever the image."""
    texture = TEXTURES[name](WHITENING)
    image = gaussian_images(1, 9)
    count = 4000
    protected = texture.protect(image.expand(count, -1, -1, -1), draws(1, count))
    view = texture.view()
    errors = WHITENING.coordinates(protected) - WHITENING.coordinates(image) @ view.gain.T - view.offset
    # Along the leading directions, in units of the view's own deviations.
    scale = view.noise.diagonal().sqrt()
    standard = (errors / scale)[:, :20].double()
    wanted = (view.noise / scale / scale[:, None])[:20, :20].double()
    assert standard.mean(dim=0).abs().max() < 5 / count**0.5
    assert (torch.cov(standard.T) - wanted).abs().max() < 0.12


def test_the_task_keeps_nothing_but_what_is_spared() -> None:
    """Two images that agree along the spared directions have the same x' to the bit of rounding."""
    texture = Task(WHITENING, SPARED, 1.0)
    coordinates = torch.randn(2, WHITENING.count, generator=torch.Generator().manual_seed(0))
    coordinates[1, [1, 4, 7]] = coordinates[0, [1, 4, 7]]
    first, second = (texture.protect(WHITENING.images(each[None]), draws(3, 1)) for each in coordinates)
    assert torch.allclose(first, second, atol=1e-5)
    coordinates[1, 4] += 1
    third = texture.protect(WHITENING.images(coordinates[1:]), draws(3, 1))
    assert not torch.allclose(first, third, atol=1e-2)


def test_the_removal_of_the_task_is_linear_mmse() -> None:
    from shadow_defense.attacks.removers.lmmse import LinearRemover

    texture = Task(WHITENING, SPARED, 1.3)
    protected = texture.protect(gaussian_images(4, 2), draws(0, 4))
    remover = LinearRemover(WHITENING, texture.view())
    wanted = remover.remove(protected, torch.zeros(4).long()).estimates
    assert torch.allclose(texture.mapped(protected).clamp(0, 1), wanted, atol=1e-5)


def test_what_is_tested_is_what_is_kept_and_the_training_has_it_shrunk() -> None:
    """``mapped(kept(x)) - mean = (tested(x) - mean) / (1 + t^2)``: the noise is right on average, the size is not."""
    texture, images = Task(WHITENING, SPARED, 1.3), gaussian_images(3, 2)
    found, wanted = (
        WHITENING.coordinates(each) for each in (texture.mapped(texture.kept(images)), texture.tested(images))
    )
    assert torch.allclose(found * (1 + 1.3**2), wanted, atol=1e-3)
    assert torch.allclose(wanted @ SPARED, WHITENING.coordinates(images) @ SPARED, atol=1e-3)
    assert (wanted - wanted @ SPARED @ SPARED.T).abs().max() < 1e-3


def test_covariance_leaves_nothing_bare_outside_of_the_directions() -> None:
    whitening = measure_whitening(gaussian_images(90, 0))
    images = gaussian_images(2, 3)
    assert whitening.outside(images).abs().max() > 0.01
    for texture in (Covariance(whitening, 1.0), Task(whitening, torch.eye(60)[:, :2], 1.0)):
        assert whitening.outside(texture.protect(images, draws(0, 2))).abs().max() < 1e-5


def test_a_draw_is_the_same_for_ever_and_for_one_image_alone() -> None:
    images = (gaussian_images(3, 4) * 255).byte()
    texture, unit = White(WHITENING, 1.0), images.float() / 255
    first = texture.protect(unit, frozen_draws(5, "white", images))
    again = texture.protect(unit[[2, 0]], frozen_draws(5, "white", images[[2, 0]]))
    assert torch.equal(first[[2, 0]], again)
    for other in (frozen_draws(6, "white", images), frozen_draws(5, "white 2", images)):
        noise = texture.protect(unit, other) - unit
        together = torch.corrcoef(torch.stack([(first - unit).flatten(), noise.flatten()]))[0, 1]
        assert abs(together) < 0.2
    noises = (first - unit).flatten(1)
    assert torch.corrcoef(noises).fill_diagonal_(0).abs().max() < 0.4


def test_generated_decoys_are_the_generator_s_images_of_the_drawn_codes() -> None:
    generator = DCGANGenerator(image_size=16, z_dim=4, width=4)
    decoys = GeneratedDecoys(generator)
    drawn = decoys.drawn(draws(2, 3))
    codes = torch.stack([torch.randn(4, generator=each) for each in draws(2, 3)])
    with torch.no_grad():
        assert torch.equal(drawn, (generator.eval()(codes) + 1) / 2)

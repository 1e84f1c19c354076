"""What is clipped, rounded and mapped is still described by its view."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.attacks.removers.choosing import squared_errors
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening
from shadow_defense.protection.written import Written
from tests.protection.gaussian_images import draws, gaussian_images
from tests.protection.test_textures import SPARED, WHITENING

PUBLIC = gaussian_images(600, 0)
CLEAN = gaussian_images(300, 7)


@pytest.mark.parametrize("texture", [White(WHITENING, 0.4), Task(WHITENING, SPARED, 1.2)], ids=["white", "task"])
def test_the_view_is_the_closest_linear_one(texture: Texture) -> None:
    """What it leaves of ``w_z - A w`` has no mean, the variance of the view, and nothing that ``w`` could tell."""
    written = Written(texture, PUBLIC)
    view = written.view()
    protected = written.protect(CLEAN, draws(1, 300))
    assert protected.min() >= 0
    assert protected.max() <= 1
    assert torch.equal((protected * 255).round() / 255, protected)
    clean = WHITENING.coordinates(CLEAN)
    errors = (WHITENING.coordinates(protected) - clean @ view.gain.T - view.offset)[:, :20].double()
    spread = view.noise.diagonal()[:20].double().sqrt()
    assert ((errors / spread).mean(dim=0).abs() < 6 / 300**0.5).all()
    assert torch.allclose(errors.std(dim=0) / spread, torch.ones(20).double(), atol=0.2)


def test_a_clipped_image_is_removed_better_by_its_own_view() -> None:
    """Noise on dark images is cut off at one end alone, which makes them brighter."""
    dark, public = ((each - 0.3).clamp(0, 1) for each in (CLEAN, PUBLIC))
    texture = White(measure_whitening(public), 0.3)
    written = Written(texture, public)
    protected = written.protect(dark, draws(2, 300))
    fitted, unaware = (
        float(squared_errors(LinearRemover(texture.whitening, each.view()).removal.images([protected]), dark).mean())
        for each in (written, texture)
    )
    assert fitted < 0.8 * unaware


def test_the_map_is_undone_as_far_as_it_can_be() -> None:
    """LMMSE of the mapped image is the image itself: nothing more is in it."""
    texture = Task(WHITENING, SPARED, 1.2)
    mapped = Written(texture, PUBLIC).protect(CLEAN, draws(3, 300))
    removed = LinearRemover(WHITENING, Written(texture, PUBLIC).view()).removal.images([mapped])
    assert torch.allclose(removed, mapped, atol=0.02)

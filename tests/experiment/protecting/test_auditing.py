"""The bound of linear removers, in the measure in which it holds."""

from __future__ import annotations

import torch

from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.data.dataset import ImageSet
from shadow_defense.experiment.protecting.auditing import audit_images
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.progress import Progress
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening
from shadow_defense.seeds import named_generator
from tests.protection.gaussian_images import gaussian_images


def test_the_linear_remover_meets_its_bound_in_the_measure_of_the_bound(quick: None) -> None:
    """On images of the public ones' mean and covariance; the mean of PSNRs would pass it."""
    images = gaussian_images(1200, 3)
    bytes_ = (images.clamp(0, 1) * 255).round().byte()
    public, private = bytes_[:1000], bytes_[1000:]
    texture = White(measure_whitening(public.float() / 255), 0.2)
    draws = [named_generator(5, "test", place) for place in range(len(private))]
    audited = audit_images(
        texture,
        texture,
        texture.protect(private.float() / 255, draws),
        torch.arange(len(private)),
        Knowledge(public.float() / 255, torch.zeros(len(public)).long(), 1),
        ImageSet(private, torch.zeros(len(private)).long(), tuple(map(str, range(len(private))))),
        ProtectSettings(texture="white"),
        Progress(),
    )
    linear, bound = audited.removers["lmmse"], audited.floor["psnr_of_mean_error"].mean
    low, high = linear["psnr_of_mean_error"].interval or (0, 0)
    assert low - 0.1 < bound < high + 0.1
    assert linear["psnr"].mean > linear["psnr_of_mean_error"].mean

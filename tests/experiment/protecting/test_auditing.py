"""The bound of linear removers, in the measure in which it holds."""

from __future__ import annotations

import pytest
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("known", "said"), [(True, "does not find their patients"), (False, "do not say whose")])
def test_without_a_verifier_that_works_it_is_said(quick: None, known: bool, said: str) -> None:
    """Images of which no two are alike, under names of patients that mean nothing."""
    images = (gaussian_images(260, 4).clamp(0, 1) * 255).round().byte()
    public, private = images[:200], images[200:]
    names = tuple(f"patient {place // 2}" for place in range(len(public)))
    texture = White(measure_whitening(public.float() / 255), 0.2)
    draws = [named_generator(5, "test", place) for place in range(len(private))]
    audited = audit_images(
        texture,
        texture,
        texture.protect(private.float() / 255, draws),
        torch.arange(len(private)),
        Knowledge(public.float() / 255, torch.zeros(len(public)).long(), 1, names if known else None),
        ImageSet(private, torch.zeros(len(private)).long(), tuple(map(str, range(60))), names[:60]),
        ProtectSettings(texture="white", remover_steps=50),
        Progress(),
    )
    assert said in audited.notes[0]
    # Nobody's images are alike: what is found of another image of the same name is chance.
    assert audited.linkage["patient_auc"].mean == pytest.approx(0.5, abs=0.12)

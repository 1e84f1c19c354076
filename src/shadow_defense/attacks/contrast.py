"""The contrast of what was rebuilt, of which a normalised network's update says nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.misfit import misfit
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.threat_model import Knowledge

UNTOLD = "the contrast, which the update does not tell, as usual"

TELLS = 1e-3
"""How far the distance to an update that tells the contrast is from that of half the contrast, at least."""


def contrast(images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """``sqrt(mean x^2)`` of each normalised image, around 0, the mean brightness.

    >>> contrast(torch.tensor([-2.0, 2.0]).view(1, 1, 1, 2)).tolist()
    [2.0]
    """
    return images.square().mean(dim=(1, 2, 3)).sqrt()


def is_left_to_chance(needs: frozenset[Knowledge], observation: Observation) -> bool:
    """Whether an attack that reads ``needs`` and searches pixels has nothing but the update to tell it the contrast.

    Batch norm's statistics, where they are shared, tell it to who matches them.
    """
    parameters = {name for name, _ in observation.model.named_parameters()}
    return "buffers" not in needs or observation.update.tensors.keys() <= parameters


def with_contrast(found: Reconstruction, observation: Observation, usual: float | None, seed: int) -> Reconstruction:
    """The reconstruction at the contrast that images have, where the update tells none; else as it is.

    ``x' = usual (1 - D(x)) x / contrast(x)`` of each normalised image, D the distance of the update that the images
    would have caused (:func:`~shadow_defense.attacks.misfit.misfit`). Where every layer's output is normalised D(c x)
    is the same for all c > 0, and a search ends at the c that its start and its path happen to lead to: whether it is
    so is asked of D(x / 2). The worse the update is explained, the less of the image is the client's, and the nearer to
    the mean the best guess lies.

    Args:
        found: images in [0, 1]; what is not finite is left alone.
        observation: with the local training, or the reconstruction stays as it is.
        usual: the contrast of images as they are trained on, in normalised units
            (:func:`~shadow_defense.data.dataset.measure_contrast`); None: not known, and the reconstruction stays.
        seed: of what a model draws that is a random layer.
    """
    if usual is None or not observation.grants("local training"):
        return found
    explained = misfit(observation, found, seed)
    if explained is None:
        return found
    normalised = observation.normalisation.apply(found.images)

    def scaled(factor: Tensor) -> Reconstruction:
        images = observation.normalisation.invert(factor.view(-1, 1, 1, 1) * normalised).clamp(0, 1)
        return replace(found, images=images)

    own = contrast(normalised)
    by_half = misfit(observation, scaled(torch.full_like(own, 0.5)), seed)
    if by_half is None or abs(by_half - explained) > TELLS:
        return found
    usually = scaled(usual * max(0.0, 1 - explained) / own.clamp_min(torch.finfo(own.dtype).tiny))
    return replace(usually, notes=(*found.notes, UNTOLD))

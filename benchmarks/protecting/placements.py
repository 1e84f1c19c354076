"""Where white noise goes: maps of public images, at the same leakage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from protecting.material import Material
from protecting.pixels import noise_of_guard
from shadow_defense.metrics.limit import Limit
from shadow_defense.models.class_activation import class_activation_maps, find_cam_layer
from shadow_defense.models.functional import training_mode
from shadow_defense.protection.white import White
from shadow_defense.seeds import named_generator

COMMON = 32
"""Principal directions that say what images have in common; what lies along the others is detail."""

LEAST_WEIGHT = 0.1
"""Of any pixel, in units of the mean: without noise it would be seen bare."""

MAPPED = 200
"""Public images over which the published map is averaged."""

LEAKAGE = (Limit("psnr", 2.0),)
"""At which placements are compared."""

Map = Float[Tensor, "h w"]


def even(material: Material) -> Map:
    return torch.ones(material.whitening.shape[1:])


def private_detail(material: Material) -> Map:
    """Deviation of what the common directions don't say, over how much the classifier's answer depends on the pixel."""
    whitening = material.whitening
    along = whitening.directions[:, COMMON:] * whitening.deviations[COMMON:]
    detail = (along.square().sum(dim=1) + whitening.rest).sqrt().unflatten(0, whitening.shape).mean(dim=0)
    found, needed = material.classifier(), torch.zeros(whitening.shape[1:])
    with training_mode(found.model, False):
        for images in material.pool.split(256):
            inputs = images.clone().requires_grad_(True)
            logits = found.model(found.normalisation.apply(inputs))
            (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum() - logits.mean(dim=1).sum(), inputs)
            needed += gradient.square().sum(dim=(0, 1))
    needed = (needed / len(material.pool)).sqrt()
    return detail / (needed / needed.mean() + LEAST_WEIGHT)


def published(material: Material) -> Map:
    """The mean of what steps 2 to 9 put on public images: vulnerable pixels, the foreground spared."""
    some = material.public.subset(range(len(material.public))[:MAPPED])
    return noise_of_guard(material, some, material.seed).abs().mean(dim=(0, 1))


def off_the_foreground(material: Material) -> Map:
    """Full noise where the classifier does not look, :data:`LEAST_WEIGHT` where it looks most (Grad-CAM++)."""
    found, looked = material.classifier(), torch.zeros(material.whitening.shape[1:])
    layer = find_cam_layer(found.model, material.pool[:1])
    for images, labels in zip(material.pool.split(256), material.public.labels.split(256), strict=True):
        inputs = found.normalisation.apply(images)
        looked += class_activation_maps(found.model, found.model, inputs, labels, layer).sum(dim=0)
    looked = looked / looked.max()
    return 1 - (1 - LEAST_WEIGHT) * looked


def shuffled(material: Material) -> Map:
    """A control: the weights of private detail at random places."""
    weights = private_detail(material).flatten()
    order = torch.randperm(len(weights), generator=named_generator(material.seed, "shuffled placement"))
    return weights[order].view(material.whitening.shape[1:])


def placed(of: Callable[[Material], Map]) -> Callable[[Material], White]:
    """White noise so placed, at the weakest strength that leaves :data:`LEAKAGE`."""

    def made(given: Material) -> White:
        weights = of(given)
        weights = (weights / weights.mean()).clamp_min(LEAST_WEIGHT)

        def make(strength: float) -> White:
            return White(given.whitening, strength, weights)

        return make(given.weakest(make, LEAKAGE))

    return made


PLACEMENTS = {
    "placed evenly": placed(even),
    "placed by private detail": placed(private_detail),
    "placed off the foreground": placed(off_the_foreground),
    "placed by the published map": placed(published),
    "placed by shuffled detail": placed(shuffled),
}

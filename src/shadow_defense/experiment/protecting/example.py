"""One image for the page: a public one, protected with draws of nobody's, since a patient's has no place there."""

from __future__ import annotations

import torch

from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.protection.texture import Texture
from shadow_defense.report.records.certificate import Example


def example_of(texture: Texture, knowledge: Knowledge, seed: int) -> Example:
    """The first public image that was held back: clean, protected, and what the linear remover makes of it."""
    _, held = knowledge.parts()
    clean = held.images[:1]
    protected = texture.protect(clean, drawn(seed, "example", 1))
    removed = LinearRemover(texture.whitening, texture.view()).remove(protected, torch.zeros(1).long()).estimates
    mean = texture.whitening.mean.unflatten(0, texture.whitening.shape)
    return Example(clean[0], protected[0].clamp(0, 1), removed[0], mean)

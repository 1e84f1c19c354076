"""How long a protection or its audit will take, before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shadow_defense.attacks.removers.learned import BATCH_SIZE, train_remover
from shadow_defense.attacks.removers.unknown import AsGiven
from shadow_defense.data.dataset import Normalisation
from shadow_defense.devices import resolved_device
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.protection.directions import EPOCHS, train_classifier

Tell = Callable[[Mapping[str, float]], None]
"""What is told a forecast, where somebody waits for it."""

PART = BATCH_SIZE // 4
"""Images of a measured step, which has to be short: of 224 px a batch takes twenty seconds on a processor."""


def forecast(public: PublicImages, settings: ProtectSettings, *, classifier: bool) -> dict[str, float]:
    """Seconds of the networks that are trained, by what they are, as a few steps of the same trainings take.

    Nearly all of the time; a verifier of patients comes on top, where these are known.

    Args:
        classifier: whether one is trained on the public images.
    """
    shape, device = public.images.shape[1:], resolved_device(settings.device)
    images, labels = torch.rand(PART, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(PART) % 2

    def pairs(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return images, images, torch.zeros_like(labels)

    def remove() -> None:
        # A linear removal, which comes before it, takes next to no time.
        train_remover(AsGiven(), pairs, public.classes, seed=0, steps=1, device=device)

    def classify() -> None:
        normalisation = Normalisation((0.0,) * shape[0], (1.0,) * shape[0])
        train_classifier(images, labels, normalisation, seed=0, epochs=1, device=device)

    # What removes the texture, and what shows on sparse noise that it can; decoys of a pool are removed twice.
    networks = 3 if settings.texture == "decoy" else 2
    found = {"removers": networks * settings.remover_steps * BATCH_SIZE / PART * _seconds(remove)}
    if classifier:
        found["classifier"] = EPOCHS * len(public.images) / PART * _seconds(classify)
    return found


def _seconds(step: Callable[[], None]) -> float:
    # The first of a process, or on a device, takes longer.
    step()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started

"""A client with real faces, what the attacker sees of its round, and what can be said without any attack."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.attacks.local_steps import SimulatedTraining, simulate_training
from shadow_defense.attacks.observation import Observation, observe
from shadow_defense.attacks.target import Target, matching_target
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import on_host
from shadow_defense.generators.interface import Generator
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

SIDE = 16
SHAPE = (1, SIDE, SIDE)
PRIVATE = (3, 17, 30, 42, 55, 68, 71, 90)
"""The faces that clients hold; all others are public."""


@cache
def faces() -> Tensor:
    """The hundred faces of Labeled Faces in the Wild that scikit-image carries, (100, 1, 16, 16), in whole bytes."""
    crops = pytest.importorskip("skimage.data").lfw_subset()[:100]
    images = torch.as_tensor(crops, dtype=torch.float32).unsqueeze(1)
    small = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return (small * 255).round() / 255


def private(count: int = 1) -> Tensor:
    """What a client of ``count`` images holds, in [0, 1]."""
    return faces()[list(PRIVATE[:count])]


def public() -> Tensor:
    return faces()[[index for index in range(100) if index not in PRIVATE]]


def normalisation() -> Normalisation:
    return Normalisation((float(public().mean()),), (float(public().std()),))


def lenet(classes: int = 2, seed: int = 0) -> nn.Module:
    chosen = ModelSettings(name="lenet", normalisation="none")
    return build_model(chosen, channels=1, classes=classes, image_size=(SIDE, SIDE), seed=seed)


def observation(
    model: nn.Module,
    labels: tuple[int, ...] = (1,),
    *,
    classes: int = 2,
    threat: str = "informed server",
    batch_size: int | None = None,
    epochs: int = 1,
    learning_rate: float = 0.1,
    defense: Defense | None = None,
    explain: frozenset[str] = frozenset(),
    training: TrainingSettings | None = None,
    told: OptimiserName | None = None,
    generator: Generator | None = None,
) -> tuple[Observation, dict[str, Tensor]]:
    """A round of a client with ``labels``, as the attacker sees it, and what the defense explains of it.

    Args:
        training: in place of ``epochs`` of SGD at ``learning_rate``.
        told: what the attacker takes for the optimiser; None: the client's own.
    """
    training = training or TrainingSettings(learning_rate=learning_rate, local_epochs=epochs)
    count = len(labels)
    data = ImageSet((private(count) * 255).round().byte(), torch.tensor(labels), tuple(map(str, range(count))))
    state = {key: tensor.clone() for key, tensor in on_host(model.state_dict()).items()}
    result = train_locally(
        model,
        state,
        ClientData("site-1", data, data, data, batch_size or count),
        defense or Defense(),
        settings=training,
        round=0,
        normalisation=normalisation(),
        loss_fn=training.loss_function(),
        seed=0,
        explain=explain,
    )
    model.load_state_dict(state)
    known = LocalTraining.of(training, 0, batch_size or count, result.update.steps)
    seen = observe(
        threat_model(threat),
        model=model,
        loss_fn=training.loss_function(),
        global_state=state,
        update=result.update,
        image_shape=SHAPE,
        classes=classes,
        normalisation=normalisation(),
        labels=data.labels,
        local_training=replace(known, optimiser=told or known.optimiser),
        template=public().mean(0),
        usual_contrast=normalisation().apply(public()).square().mean().sqrt().item(),
        generator=None if generator is None else lambda: generator,
    )
    return seen, dict(result.explanations)


def simulated(seen: Observation, images: Tensor) -> tuple[Target, SimulatedTraining]:
    """What a client of these normalised images would have sent, as every attack simulates it."""
    target = matching_target(seen, longest_unroll=16)
    with BatchStatisticsRecorder(seen.model) as recorder:
        return target, simulate_training(
            seen.model,
            target.parameters,
            target.buffers,
            images,
            target.labels,
            seen.loss_fn,
            target.local,
            recorder,
            target.sent,
        )


def baseline(count: int = 1) -> float:
    """PSNR in dB of the mean of public faces, averaged over the client's."""
    return psnr(public().mean(0).expand(count, -1, -1, -1), private(count)).mean().item()


SHORT: dict[str, dict[str, Any]] = {"learning-to-invert": {"epochs": 2, "updates": 10, "hidden": 8}}
"""Options of attacks that know no iterations."""


def some_images(name: str, side: int) -> ImageSet:
    """Six of two classes, without meaning."""
    drawn = torch.randint(0, 256, (6, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(drawn, torch.arange(6) % 2, tuple(f"{name} {index}" for index in range(6)))

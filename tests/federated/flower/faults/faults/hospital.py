"""What the server and the hospitals share: a linear model, noise for images, two classes."""

from __future__ import annotations

import torch
from torch import nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation
from shadow_defense.federated.settings import TrainingSettings

NAMES = ("hospital-1", "hospital-2", "hospital-3")


def settings(rounds: int) -> TrainingSettings:
    return TrainingSettings(rounds=rounds, learning_rate=0.1)


def model() -> nn.Module:
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-0.1, 0.1, 128).view(2, 64))
        linear.bias.zero_()
    return nn.Sequential(nn.Flatten(), linear)


def dataset() -> FederatedDataset:
    clients = tuple(
        ClientData(name, _images(4, name, seed), _images(1, f"{name}/v", seed), _images(1, f"{name}/t", seed), 2)
        for seed, name in enumerate(NAMES)
    )
    normalisation = Normalisation((0.5,), (0.25,))
    return FederatedDataset("tiny", clients, _images(4, "public", 9), _images(2, "test", 8), ("a", "b"), normalisation)


def _images(count: int, prefix: str, seed: int) -> ImageSet:
    drawn = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageSet(drawn, torch.arange(count) % 2, tuple(f"{prefix}/{index}" for index in range(count)))

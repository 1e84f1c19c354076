"""Three sites with a few images and a small model: what trainings of every engine are tested on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

NORMALISATION = Normalisation((0.5,), (0.25,))
SIZES = {"site-1": 4, "site-2": 3, "site-3": 1}


def images(count: int, prefix: str, seed: int) -> ImageSet:
    drawn = torch.randint(0, 256, (count, 1, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageSet(drawn, torch.arange(count) % 2, tuple(f"{prefix}/{index}" for index in range(count)))


def dataset() -> FederatedDataset:
    clients = tuple(
        ClientData(name, images(count, name, seed), images(1, f"{name}/v", seed), images(1, f"{name}/t", seed), 2)
        for seed, (name, count) in enumerate(SIZES.items())
    )
    return FederatedDataset("tiny", clients, images(6, "public", 9), images(2, "test", 8), ("a", "b"), NORMALISATION)


def build() -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation="batch", width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(16, 16), seed=0)


def shadow(site: str) -> Defense:
    generator = DCGANGenerator(image_size=16, channels=1, z_dim=4, width=4)
    # Initialised from the global state: every site and every federation of a test gets the same.
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    settings = ShadowSettings(latent_iterations=3, attack_iterations=1, shadow_rounds=3, placement="shuffled")
    guard = ShadowGuard(generator, settings, mean=(0.5,), std=(0.25,), seed=list(SIZES).index(site))
    return ShadowDefense(guard)


def evaluate(model: nn.Module) -> dict[str, Any]:
    return {"sum": float(sum(parameter.detach().double().sum() for parameter in model.parameters()))}

"""Three sites with a few images and a small model, for trainings that take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import Context
from tests.federated.flower.in_process_grid import InProcessGrid, start
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense, SharedBatchNorm
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.client_state import ClientStateFolder
from shadow_defense.federated.flower.server_app import FlowerServer, build_server_app
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.settings import ShadowSettings

NORMALISATION = Normalisation((0.5,), (0.25,))
SIZES = {"site-1": 4, "site-2": 3, "site-3": 1}
SETTINGS = TrainingSettings(rounds=3, learning_rate=0.1, milestones=(2,))

MakeDefense = Callable[[str], Defense]


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
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    settings = ShadowSettings(latent_iterations=3, attack_iterations=1, shadow_rounds=3, placement="shuffled")
    guard = ShadowGuard(generator, settings, mean=(0.5,), std=(0.25,), seed=list(SIZES).index(site))
    return ShadowDefense(guard)


def named(name: str, **options: Any) -> MakeDefense:
    """A defense of the registry."""
    settings = DefenseSettings(defense=name, options=options)

    def make(site: str) -> Defense:
        return settings.build(Resources(None, NORMALISATION, images(6, "public", 9), 2, site, 0))

    return make


def evaluate(model: nn.Module) -> dict[str, Any]:
    return {"sum": float(sum(parameter.detach().double().sum() for parameter in model.parameters()))}


def in_one_process(folder: Path, defense: MakeDefense, share_bn: SharedBatchNorm = "all") -> dict[str, Tensor]:
    """The global model of the engine that Flower is compared with."""
    made = Federation(
        build(),
        dataset(),
        {name: defense(name) for name in SIZES},
        SETTINGS,
        F.cross_entropy,
        evaluate,
        seed=0,
        folder=folder,
        keep={0: tuple(SIZES), 2: ("site-2",)},
        share_bn=share_bn,
    )
    made.run()
    return dict(made.global_state)


def participants(
    states: Path, defense: MakeDefense, share_bn: SharedBatchNorm = "all", **changes: Any
) -> Callable[[Context], Participant]:
    """The three sites, by the partition that their node is told."""

    def participant(context: Context) -> Participant:
        data, partition = dataset(), int(context.node_config["partition-id"])
        client = data.clients[partition]
        given: dict[str, Any] = {
            "model": build(),
            "dataset": data,
            "client": client,
            "defense": defense(client.name),
            "settings": SETTINGS,
            "loss_fn": F.cross_entropy,
            "seed": 0,
            "share_bn": share_bn,
            "partition": partition,
            "states": ClientStateFolder(states, "run", client.name),
            "exact": True,
        }
        return Participant(**{**given, **changes})

    return participant


def server(folder: Path, share_bn: SharedBatchNorm = "all", **changes: Any) -> FlowerServer:
    given: dict[str, Any] = {
        "model": build(),
        "dataset": dataset(),
        "settings": SETTINGS,
        "evaluate": evaluate,
        "folder": folder,
        "keep": {0: tuple(SIZES), 2: ("site-2",)},
        "share_bn": share_bn,
    }
    return FlowerServer(**{**given, **changes})


def on_flower(
    folder: Path,
    defense: MakeDefense,
    share_bn: SharedBatchNorm = "all",
    *,
    client: Mapping[str, Any] | None = None,
    **changes: Any,
) -> InProcessGrid:
    """A training on Flower's apps; returns the grid with all messages that passed."""
    grid = InProcessGrid(
        build_client_app(participants(folder / "clients", defense, share_bn, **(client or {}))), len(SIZES)
    )
    made = server(folder, share_bn, **changes)
    start(build_server_app(lambda context: made), grid)
    return grid

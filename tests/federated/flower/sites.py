"""The three sites on Flower, and in the engine that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from flwr.app import Context
from tests.federated.flower.in_process_grid import InProcessGrid, start
from tests.federated.three_sites import NORMALISATION, SIZES, build, dataset, evaluate, images, shadow
from torch import Tensor

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.server_app import FlowerServer, build_server_app
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings

SETTINGS = TrainingSettings(rounds=3, learning_rate=0.1, milestones=(2,))

MakeDefense = Callable[[str], Defense]


def named(name: str, **options: Any) -> MakeDefense:
    """A defense of the registry."""
    settings = DefenseSettings(defense=name, options=options)

    def make(site: str) -> Defense:
        return settings.build(Resources(None, NORMALISATION, images(6, "public", 9), 2, site, 0))

    return make


PLAIN = named("none")
DEFENSES: dict[str, MakeDefense] = {
    "none": PLAIN,
    "shadow": shadow,
    "local-dp": named("local-dp"),
    "clip+noise": named("clip+noise", clip={"place": "update"}),
}

KEEP = {0: tuple(SIZES), 2: ("site-2",)}


def in_one_process(
    folder: Path, defense: MakeDefense, share_bn: SharedBatchNorm = "all", settings: TrainingSettings = SETTINGS
) -> dict[str, Tensor]:
    """The global model of the engine that Flower is compared with."""
    made = Federation(
        build(),
        dataset(),
        {name: defense(name) for name in SIZES},
        settings,
        F.cross_entropy,
        evaluate,
        seed=0,
        folder=folder,
        keep=KEEP,
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
        "keep": KEEP,
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

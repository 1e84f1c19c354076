"""Nothing that leaves a Flower client tells two sets of clean images with the same protected images apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, MetricRecord
from tests.federated.flower.in_process_grid import InProcessGrid, start
from tests.federated.flower.sites import participants, server
from tests.federated.three_sites import NORMALISATION, SIZES, images
from torch import Tensor

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.federated.flower.client_app import Participant, build_client_app
from shadow_defense.federated.flower.server_app import build_server_app
from shadow_defense.protection.frozen import FrozenProtection

PUBLIC = images(50, "public", 9)


def once(site: str) -> Defense:
    settings = DefenseSettings(defense="protect-once", preset="white")
    return settings.build(Resources(None, NORMALISATION, PUBLIC, 2, site, 0))


def holding(folder: Path, seed: int) -> Callable[[Context], Participant]:
    """The three sites, each with clean images of that seed under its own names and labels."""
    make = participants(folder, once)

    def participant(context: Context) -> Participant:
        made = make(context)
        own = made.client.train
        drawn = images(len(own), "x", 100 * seed + made.partition).images
        return dataclasses.replace(
            made, client=dataclasses.replace(made.client, train=dataclasses.replace(own, images=drawn))
        )

    return participant


def left(folder: Path, seed: int) -> list[tuple[str, object]]:
    """All that the sites sent in three rounds: tensors as bytes, metrics, configurations."""
    grid = InProcessGrid(build_client_app(holding(folder / "clients", seed)), len(SIZES))
    made = server(folder)
    start(build_server_app(lambda context: made), grid)
    found: list[tuple[str, object]] = []
    # Flower asks its nodes in an order of its own in each round.
    ordered = sorted(enumerate(grid.replies), key=lambda each: (each[0] // len(SIZES), each[1].metadata.src_node_id))
    for _, reply in ordered:
        assert not reply.has_error(), reply.error
        for name, record in sorted(reply.content.items()):
            if isinstance(record, MetricRecord | ConfigRecord):
                found.append((name, sorted(dict(record).items())))
            else:
                found += [(f"{name} {key}", array.data) for key, array in sorted(record.items())]
    return found


@pytest.fixture
def same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn takes no notice of the clean images."""

    def drawn(self: FrozenProtection, clean: Tensor) -> Tensor:
        return torch.rand(clean.shape, generator=torch.Generator().manual_seed(len(clean)))

    monkeypatch.setattr(FrozenProtection, "trained_on", drawn)


def test_the_replies_are_the_same_bytes(tmp_path: Path, same_pictures: None) -> None:
    one, other = (left(tmp_path / str(seed), seed) for seed in (1, 2))
    assert sum(name.startswith("arrays") for name, _ in one) >= 9 * 5
    assert one == other


def test_without_the_same_pictures_they_are_not(tmp_path: Path) -> None:
    one, other = (left(tmp_path / str(seed), seed) for seed in (1, 2))
    assert one != other

"""The three sites of sites.py, whose updates leave by secure aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from tests.federated.flower import sites
from tests.federated.flower.in_process_grid import InProcessGrid, start
from tests.federated.three_sites import SIZES, build, dataset, evaluate

from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.federated.flower.secure_aggregation.client_app import build_secure_client_app
from shadow_defense.federated.flower.secure_aggregation.fixed_point import FixedPoint
from shadow_defense.federated.flower.secure_aggregation.server_app import SecureServer
from shadow_defense.federated.flower.server_app import build_server_app

FIXED_POINT = FixedPoint(len(SIZES), max(SIZES.values()))
ONE_ROUND = sites.SETTINGS.model_copy(update={"rounds": 1, "milestones": ()})
STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")


class SecureGrid(InProcessGrid):
    """Answers as a list, since Flower's workflow reads them more than once."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(super().send_and_receive(messages, timeout=timeout))

    def of_stage(self, stage: str) -> list[tuple[Message, Message]]:
        """What was sent in one of the :data:`STAGES`, over all rounds, and what came back."""
        pairs = zip(self.sent, self.replies, strict=True)
        return [(sent, reply) for sent, reply in pairs if sent.content[RECORD_KEY_CONFIGS]["stage"] == stage]


def secure_server(folder: Path, share_bn: SharedBatchNorm = "all", **changes: Any) -> SecureServer:
    given: dict[str, Any] = {
        "model": build(),
        "dataset": dataset(),
        "settings": sites.SETTINGS,
        "evaluate": evaluate,
        "folder": folder,
        "keep": sites.KEEP,
        "share_bn": share_bn,
        "most_images": max(SIZES.values()),
    }
    return SecureServer(**{**given, **changes})


def secure_grid(
    states: Path, defense: sites.MakeDefense, share_bn: SharedBatchNorm = "all", **changes: Any
) -> SecureGrid:
    return SecureGrid(build_secure_client_app(sites.participants(states, defense, share_bn, **changes)), len(SIZES))


def by_secure_aggregation(
    folder: Path,
    defense: sites.MakeDefense,
    share_bn: SharedBatchNorm = "all",
    *,
    client: Mapping[str, Any] | None = None,
    **changes: Any,
) -> SecureGrid:
    """A training; returns the grid with all messages that passed."""
    grid = secure_grid(folder / "clients", defense, share_bn, **(client or {}))
    made = secure_server(folder, share_bn, **changes)
    start(build_server_app(lambda context: made), grid)
    return grid

"""A federation under a baseline defense, stopped between rounds and resumed, goes on to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.federated.stopping import killed_before
from torch import nn

from shadow_defense.data.dataset import ClientData, FederatedDataset, Normalisation
from shadow_defense.defenses.build import DefenseSettings, Resources
from shadow_defense.federated.rounds import Federation
from shadow_defense.federated.settings import TrainingSettings

ARMS = [
    DefenseSettings(defense="noise", options={"place": "update"}),
    DefenseSettings(defense="gradient-clipping", preset="strong"),
    DefenseSettings(defense="gradient-sparsification", options={"error_feedback": True}),
    DefenseSettings(defense="local-dp"),
    DefenseSettings(defense="dp-sgd"),
    DefenseSettings(defense="ats"),
    DefenseSettings(defense="mixup"),
    DefenseSettings(defense="instahide"),
    DefenseSettings(defense="precode"),
    DefenseSettings(defense="ats+sparse+dp", options={"sparse": {"error_feedback": True}}),
    DefenseSettings(defense="instahide+outpost+noise"),
    DefenseSettings(defense="dcs", options={"steps": 1}),
    DefenseSettings(defense="optimal-noise", options={"directions": 1}),
    # Sensitivities are measured on a model that draws from the global state.
    DefenseSettings(defense="precode+grad-defense"),
]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.defense)
def test_stopped_and_resumed_equals_unbroken(
    arm: DefenseSettings, build: Callable[..., nn.Module], client: Callable[..., ClientData], tmp_path: Path
) -> None:
    site, normalisation = client(count=5, batch_size=2), Normalisation((0.5,), (0.25,))

    def federation(folder: str) -> Federation:
        return Federation(
            arm.adapt_model(build(), seed=0),
            FederatedDataset("tiny", (site,), site.train, site.train, ("a", "b"), normalisation),
            {"site-1": arm.build(Resources(None, normalisation, site.train, 2, "site-1", seed=0))},
            TrainingSettings(rounds=3, learning_rate=0.1),
            F.cross_entropy,
            lambda model: {},
            seed=0,
            folder=tmp_path / folder,
        )

    def measured(made: Federation) -> list[Any]:
        return [entry["clients"] for entry in made.history]

    straight, stopped, resumed = federation("straight"), federation("stopped"), federation("stopped")
    straight.run()
    with pytest.raises(KeyboardInterrupt):
        killed_before(stopped, 2).run()
    resumed.run()
    assert measured(resumed) == measured(straight)
    assert all(torch.equal(tensor, resumed.global_state[name]) for name, tensor in straight.global_state.items())

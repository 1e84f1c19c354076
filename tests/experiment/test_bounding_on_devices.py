"""A worst case is found where the scene computes, and is the same on every device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.attacks.removers import copied
from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.config import config_from
from shadow_defense.data.dataset import concatenated
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks import bounding
from shadow_defense.generators.build import build_networks
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from tests.elsewhere import DEVICES

pytestmark = pytest.mark.usefixtures("one_layout")


@pytest.mark.slow
@DEVICES
@pytest.mark.parametrize("arm", ["once", "shadow"])
def test_the_same_is_made_of_protected_images(
    arm: str,
    device: Callable[[], Any],
    tolerance: float,
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copied, "MOST_COPIED", 8)
    arms = {
        "once": {"defense": "protect-once", "options": {"texture": "white"}},
        "shadow": {"defense": "shadow", "options": {"latent_iterations": 1}},
    }
    generator = build_networks(GeneratorSettings(name="dcgan", width=4, z_dim=8), image_size=16, channels=1, seed=0)[0]

    def made(place: torch.device) -> dict[str, torch.Tensor]:
        run = Run(
            tmp_path / "run", config_from({**tiny, "data": {**tiny["data"], "public_fraction": 0.4}, "arms": arms})
        )
        run.__dict__["device"] = place
        data = run.dataset
        everybody = concatenated([client.train for client in data.clients])
        places = torch.arange(2)
        knowledge = Knowledge(data.public.unit_images(), data.public.labels, data.classes, device=place)
        case = bounding._Case(run, arm, generator.eval(), knowledge, 2, Progress())
        return case.removed(everybody.subset([0, 1]), everybody, places)[0]

    with device() as place:
        found = made(place)
    for name, images in made(CPU).items():
        assert type(found[name]) is torch.Tensor
        torch.testing.assert_close(found[name], images, atol=tolerance, rtol=tolerance)

"""A malicious server in a whole run: it plants its layer, clients train, and it divides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.config import config_from
from shadow_defense.experiment.plans.run import STAGES
from shadow_defense.experiment.run import Run
from shadow_defense.progress import Progress


@pytest.mark.slow
def test_a_planted_layer_gives_images_away_with_their_noise(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["model"]["imprint"] = 16
    tiny["training"]["rounds"] = 1
    tiny["attacks"] = {
        "robbing": {"attack": "robbing-the-fed", "threat_model": "malicious server", "longest_client": 6}
    }
    run = Run.create(tmp_path / "run", config_from({**tiny, "workers": 0}))
    for stage in STAGES.values():
        stage(run, Progress())
    errors = {}
    for job in run.jobs():
        found = Reconstruction.load(run.reconstruction_path(job))
        truth = run.client(job.client).train.unit_images()
        if len(truth) == 1:
            errors.setdefault(job.arm, []).append(float((found.images - truth).abs().max()))
    assert len(errors["fedavg"]) == 2 and max(errors["fedavg"]) < 1e-3
    # What was trained on comes back: the image with its noise.
    assert min(errors["shadow"]) > 0.05
    # Six images in one update: nobody knows which is whose, which JSON cannot say by infinity.
    scores = json.loads((run.folder / "scores.json").read_text())
    assert None in [score["matching_loss"] for score in scores if score["arm"] == "fedavg"]


def test_bins_follow_the_public_images(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["model"]["imprint"] = 2
    run = Run.create(tmp_path / "run", config_from(tiny))
    public = run.dataset.normalisation.apply(run.dataset.public.unit_images()).mean(dim=(1, 2, 3))
    state = run.new_model("fedavg").state_dict()
    # The second of two bins opens at the mean.
    opens = -state["imprint.bias"][1] / state["imprint.weight"][1].sum()
    torch.testing.assert_close(opens, public.mean(), atol=1e-5, rtol=1e-4)

"""The weakest strength of each texture, and what it leaves by every measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from shadow_defense.cli.app import app
from shadow_defense.experiment.protecting.calibrating import calibrate_textures
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.weakest import Target
from shadow_defense.progress import Progress
from tests.experiment.protecting.conftest import labelled

IMAGES, LABELS = labelled(120, 20)
PUBLIC = PublicImages(torch.from_numpy(IMAGES)[:, None], torch.from_numpy(LABELS[:, 0]), 2)


def test_each_texture_meets_the_target_and_not_by_much() -> None:
    found = calibrate_textures(PUBLIC, Target("psnr", 2.0), 0, Progress())
    assert set(found) == {"recommended", "white", "covariance"}
    for name in ("white", "covariance"):
        assert 1.9 < found[name].leaks["psnr"] <= 2.0
    # The eight directions alone may tell less than that at any strength.
    assert found["recommended"].leaks["psnr"] <= 2.0
    assert all(0 <= each.leaks["linkage"] <= 1 for each in found.values())


def test_what_nothing_reaches_is_said_of_each() -> None:
    found = calibrate_textures(PUBLIC, Target("rdlv", 1e-7), 0, Progress())
    assert found["white"].strength is None
    assert "is not reached" in str(found["white"].reason)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = tmp_path / "settings.yaml"
    settings.write_text("data: {source: chest_phantom, image_size: 16, images: 300}\n")
    result = CliRunner().invoke(
        app, ["calibrate", str(settings), "--analytic", "--target", "psnr=+3", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "covariance" in result.output
    written = json.loads((out / "analytic.json").read_text())
    assert written["presets"]["white"]["leaks"]["psnr"] <= 3
    result = CliRunner().invoke(app, ["calibrate", str(settings), "--analytic", "--seeds", "0,1"])
    assert result.exit_code != 0


@pytest.mark.parametrize("target", ["ssim=0.4", "rdlv=-1"])
def test_other_targets_are_refused(tmp_path: Path, target: str) -> None:
    result = CliRunner().invoke(app, ["calibrate", "demo", "--analytic", "--target", target, "--out", str(tmp_path)])
    assert result.exit_code != 0

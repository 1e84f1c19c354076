"""The weakest strength of each texture, what it leaves by every measure, and what a model on it is worth."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from shadow_defense.cli.app import app
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.experiment.protecting import calibrating
from shadow_defense.experiment.protecting.calibrating import Calibrating, calibrate_textures
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.utility import Worth, worth_of
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.pareto import dominates
from shadow_defense.progress import Progress
from shadow_defense.report.pages.textures import render_textures
from tests.experiment.protecting.conftest import labelled

IMAGES, LABELS = labelled(120, 20)
PUBLIC = PublicImages(torch.from_numpy(IMAGES)[:, None], torch.from_numpy(LABELS[:, 0]), 2)


def images(count: int, seed: int) -> ImageSet:
    pixels, labels = labelled(count, seed)
    names = tuple(map(str, range(count)))
    return ImageSet(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels)[:, 0], names)


def work(target: Limit) -> Calibrating:
    return Calibrating(PUBLIC, Parts(images(60, 1), None, images(40, 2), ("well", "ill")), target, 0, Progress())


@pytest.mark.slow
def test_each_texture_meets_the_target_and_not_by_much(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def worth(parts: Parts, *, seed: int, device: torch.device) -> Worth:
        trained.append(parts)
        return Worth(f1=0.5 + 0.01 * len(trained), f1_threshold=None, auc=None)

    monkeypatch.setattr(calibrating, "worth_of", worth)
    record = calibrate_textures(work(Limit("psnr", 2.0)), "Textures", "a command")
    assert {row.preset for row in record.rows} == {"recommended", "directions", "white", "covariance"}
    meeting = {row.preset: row for row in record.rows if row.weakest}
    for name in ("white", "covariance"):
        assert 1.9 < meeting[name].leaks["psnr"] <= 2.0
    # The eight directions alone may tell less than that at any strength.
    assert max(meeting[name].leaks["psnr"] for name in ("recommended", "directions")) <= 2.0
    assert all(0 <= row.leaks["linkage"] <= 1 for row in record.rows)
    for name, row in meeting.items():
        lax, _, strict = (each.leaks["rdlv"] for each in record.rows if each.preset == name)
        assert lax > row.leaks["rdlv"] > strict
    # Each model saw other images than the clean one, the last; and the front is nobody's inferior.
    clean = trained[-1].train.images
    assert len(trained) == 13
    assert not any(torch.equal(each.train.images, clean) for each in trained[:-1])
    front = [(-row.leaks["rdlv"], row.worth["f1"] or 0.0) for row in record.rows if row.on_front]
    assert front
    assert not any(dominates(other, point) for other in front for point in front)
    assert "covariance" in render_textures(record)


def test_what_nothing_reaches_is_said_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is left of features may be less than the mean image shows.
    presets = {name: options for name, options in calibrating.PRESETS.items() if name != "recommended"}
    monkeypatch.setattr(calibrating, "PRESETS", presets)
    record = calibrate_textures(work(Limit("rdlv", 1e-7)), "Textures", "a command")
    assert record.rows == ()
    assert "is not reached" in record.not_reached["white"]
    assert "No texture leaves" in record.verdict[0]
    assert "is not reached" in render_textures(record)


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "worth_of", partial(worth_of, epochs=1))
    out = tmp_path / "out"
    settings = tmp_path / "settings.yaml"
    settings.write_text("data: {source: chest_phantom, image_size: 16, images: 220}\n")
    result = CliRunner().invoke(
        app, ["calibrate", str(settings), "--analytic", "--target", "psnr=+3", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "covariance" in result.output
    written = json.loads((out / "analytic.json").read_text())
    white = [row for row in written["rows"] if row["preset"] == "white" and row["weakest"]]
    assert white[0]["leaks"]["psnr"] <= 3
    assert (out / "textures.html").exists()


@pytest.mark.parametrize(
    "given", [["--target", "ssim=0.4"], ["--target", "rdlv=-1"], ["--target", "psnr=+3", "--seeds", "0,1"]]
)
def test_what_it_does_not_take_is_refused(tmp_path: Path, given: list[str]) -> None:
    result = CliRunner().invoke(app, ["calibrate", "demo", "--analytic", *given, "--out", str(tmp_path / "out")])
    assert result.exit_code != 0

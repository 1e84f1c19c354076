from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shadow_defense.attacks.analytic import explained
from shadow_defense.attacks.target import matching_target
from shadow_defense.config import config_from
from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import ModelError, RunError
from shadow_defense.experiment.analysis import COLUMNS, score_table
from shadow_defense.experiment.plans.run import STAGES, pretrain_stage, whole_run
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.scoring import ImageScore, Score
from shadow_defense.files import read_tensors
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.psnr import psnr as decibels
from shadow_defense.models.naming import NAMED, name_model
from shadow_defense.progress import Progress
from shadow_defense.report.records.scores import MEAN_IMAGE, Row
from tests.experiment.conftest import TINY, numbers
from tests.experiment.in_process import train_arm

COMMAND = [sys.executable, "-m", "shadow_defense.cli"]


class Killed(BaseException):
    """Ends a process's work where it stands, as a kill does."""


def all_stages(folder: Path, tiny: dict[str, Any]) -> None:
    run = Run.create(folder, config_from({**tiny, "workers": 0}))
    for stage in STAGES.values():
        stage(run, Progress())


def all_at_once(folder: Path, tiny: dict[str, Any]) -> None:
    whole_run(Run.create(folder, config_from({**tiny, "workers": 0})))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by stages, without a stop."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    all_stages(folder, TINY)
    return folder


def equal_results(unbroken: Path, broken: Path) -> int:
    """The number of files of tensors, all of which are the same in both folders, to the bit."""
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (unbroken, broken))
    assert numbers(first) == numbers(second)
    compared = 0
    for path in sorted(unbroken.rglob("*.safetensors")):
        ours, _ = read_tensors(path)
        theirs, _ = read_tensors(broken / path.relative_to(unbroken))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), (path, name)
        compared += 1
    return compared


@pytest.mark.slow
def test_stopped_between_any_two_files_a_run_ends_with_the_same_numbers(
    unbroken: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again, each time after some more files, it ends as one by stages without a stop, to the bit."""
    broken = tmp_path / "broken"
    whole, left, kills = os.fsync, 0, 0

    def fsync(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        whole(file)

    monkeypatch.setattr(os, "fsync", fsync)
    while not (broken / "report.html").exists():
        # More than the files of a round's state, so that every attempt gets somewhere.
        left, kills = 13 + kills % 5, kills + 1
        with contextlib.suppress(Killed):
            all_at_once(broken, tiny)
    assert kills >= 6
    # The generator and its checkpoint, both arms' states, and 2 arms x 2 rounds x 2 clients of attacks at least.
    assert equal_results(unbroken, broken) >= 2 + 2 * 4 + 8


def test_a_run_of_adam_is_attacked_as_adam(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"] = {"rounds": 1, "learning_rate": 0.001, "optimiser": "adam"}
    tiny["data"]["split"]["sizes"], tiny["arms"] = [1, 2], {"fedavg": {"defense": "none"}}
    tiny["attacks"] = {"ig": {"attack": "inverting-gradients", "options": {"iterations": 2}}}
    all_at_once(tmp_path / "run", tiny)
    run = Run.open(tmp_path / "run")
    assert "No image" not in run.report_path.read_text() and run.report_path.stat().st_size > 10_000
    job = next(job for job in run.jobs() if job.client == "client-1")
    observation = run.observation(job)
    target = matching_target(observation, longest_unroll=4)
    assert target.local.optimiser == "adam" and not any("unknown" in note for note in target.notes)
    truth = observation.normalisation.apply(run.client("client-1").train.unit_images())
    # The client's own image, in the attacker's simulation of Adam, gives the update that left.
    assert explained(observation, target, truth, target.labels) < 1e-6


@pytest.mark.slow
def test_killed_by_the_system_a_run_goes_on(
    unbroken: Path, tiny: dict[str, Any], tiny_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        [*COMMAND, "run", str(tiny_file), "--out", str(broken), "--quiet"], start_new_session=True
    )
    while not list(broken.glob("store/training-*/history.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "report.html").exists()
    all_at_once(broken, tiny)
    assert equal_results(unbroken, broken) >= 2 + 2 * 4 + 8
    assert not list(broken.rglob("*.partial*"))


@pytest.mark.slow
def test_a_finished_run_is_complete_and_does_nothing_again(unbroken: Path, tiny: dict[str, Any]) -> None:
    folder = unbroken
    for name in ("config.yaml", "results.json", "results.csv", "scores.json", "report.html"):
        assert (folder / name).is_file(), name
    results = json.loads((folder / "results.json").read_text())
    (over_rounds, first, last) = results["tables"]
    assert [row["arm"] for row in over_rounds["rows"]] == ["fedavg", "shadow", MEAN_IMAGE]
    assert (first["round"], last["round"]) == (1, 3)
    # The mean image scores the same whoever is attacked, and equals a computation of our own.
    run = Run.open(folder)
    blank = run.mean_image.unsqueeze(0)
    truths = [run.client(name).train.unit_images() for name in ("client-1", "client-2")]
    expected = float(np.mean([decibels(blank, truth).item() for truth in truths]))
    assert math.isclose(over_rounds["rows"][-1]["metrics"]["psnr_whole"]["mean"], expected, rel_tol=1e-5)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    all_stages(folder, tiny)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_stages_say_what_must_run_before_them(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config_from(tiny))
    wanted = {
        "attack": "not fully trained: run `shadow-defense train",
        "evaluate": "is missing: run `shadow-defense attack",
        "report": "no results yet: run `shadow-defense evaluate",
    }
    for stage, message in wanted.items():
        with pytest.raises(RunError) as error:
            STAGES[stage](run, Progress())
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_the_folder_keeps_its_configuration(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.create(folder, config_from(tiny))
    (folder / "store" / "key").mkdir(parents=True)
    (folder / "store" / "key" / "history.json").write_text("[]")
    Run.create(folder, config_from({**tiny, "workers": 1, "title": "another title"}))
    changed = {**tiny, "training": {**tiny["training"], "rounds": 4}}
    with pytest.raises(RunError, match=r"another training.rounds \(3, not 4\)"):
        Run.create(folder, config_from(changed))
    (folder / "arms").mkdir()
    assert Run.create(folder, config_from(changed), restart=True).config.training.rounds == 4
    assert not (folder / "arms").exists()


def test_a_batch_of_one_that_batch_norm_cannot_train_on_is_said_at_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Of 32 pixels the stem of ImageNet leaves one to the last layers."""
    tiny = {**tiny, "data": {**tiny["data"], "image_size": 32}}
    model = {"name": "resnet18", "normalisation": "batch"}
    run = Run.create(tmp_path / "run", config_from({**tiny, "model": {**model, "stem": "imagenet"}}))
    with pytest.raises(ModelError, match=r"batch norm cannot train on a batch of one .* model.stem=small"):
        run.check()
    Run.create(tmp_path / "small", config_from({**tiny, "model": {**model, "stem": "small"}})).check()
    frozen = {**tiny, "model": {**model, "stem": "imagenet"}, "training": {**tiny["training"], "batch_norm": "eval"}}
    Run.create(tmp_path / "frozen", config_from(frozen)).check()


def test_a_program_whose_feature_maps_nobody_sees_is_said_at_once(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of TorchScript only the outputs are known, and the guard's diagnosis looks at its last feature map."""
    monkeypatch.setenv(NAMED, "")
    data, options = tiny["data"], {"latent_iterations": 1}
    pixels = data["image_size"] ** 2
    torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2)), torch.zeros(2, pixels)).save(tmp_path / "net.ts")
    model = {"name": name_model(str(tmp_path / "net.ts")), "normalisation": "none"}
    values = {**tiny, "model": model, "arms": {"mine": {"defense": "shadow", "options": options}}}
    with pytest.raises(ModelError, match=r"no convolutional feature map.*\(arms.mine.options.foreground=false\)"):
        Run.create(tmp_path / "run", config_from(values)).check()
    values["arms"] = {"mine": {"defense": "shadow", "options": {**options, "foreground": False}}}
    Run.create(tmp_path / "run", config_from(values)).check()


def test_what_was_refused_does_not_stand_in_the_way(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A first command with a mistake that the stages find has computed nothing: the mended one takes its folder."""
    folder = tmp_path / "run"
    Run.create(folder, config_from({**tiny, "training": {**tiny["training"], "rounds": 4}}))
    (folder / "store").mkdir()
    assert Run.create(folder, config_from(tiny)).config.training.rounds == 3
    assert Run.open(folder).config.training.rounds == 3


@pytest.mark.parametrize("left", [{"results.json": "{}"}, {"run.json": '{"schema": 1, "shadow-defense": "0.1.7"}'}])
def test_a_folder_of_another_version_is_refused_by_its_name(
    tiny: dict[str, Any], tmp_path: Path, left: dict[str, str]
) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, config_from(tiny))
    (folder / "run.json").unlink()
    for name, text in left.items():
        (folder / name).write_text(text)
    for attempt in (lambda: Run.open(folder), lambda: Run.create(folder, config_from(tiny))):
        with pytest.raises(RunError, match=r"was written by shadow-defense 0\.1\.[07], whose files .*--restart"):
            attempt()
    assert Run.create(folder, config_from(tiny), restart=True).config == run.config
    assert Run.open(folder).config == run.config


def test_restart_never_deletes_a_folder_that_no_run_wrote(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(RunError, match="files that no run wrote"):
        Run.create(folder, config_from(tiny), restart=True)
    assert (folder / "chapter.txt").read_text() == "years of work"


def test_an_attacker_sees_what_its_threat_model_grants(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["attacks"]["blind"] = {"threat_model": "eavesdropper", "rounds": [1], "clients": ["client-3"]}
    tiny["arms"] = {"fedavg": {"defense": "none"}}
    run = Run.create(tmp_path / "run", config_from(tiny))
    pretrain_stage(run)
    assert not run.generator_path.exists(), "no arm asks for a generator"
    train_arm(run, "fedavg")
    seen = {job.attack: run.observation(job) for job in run.jobs()}
    assert seen["ig"].labels.tolist() == [1]
    assert seen["ig"].local_training.steps == 1
    with pytest.raises(Exception, match="does not grant it"):
        _ = seen["blind"].labels
    with pytest.raises(Exception, match="does not grant it"):
        _ = seen["blind"].template


def test_a_client_that_does_not_exist_is_said_before_training(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["attacks"]["ig"]["clients"] = ["client-7"]
    tiny["arms"] = {"fedavg": {"defense": "none"}}
    run = Run.create(tmp_path / "run", config_from(tiny))
    with pytest.raises(RunError, match=r"names 'client-7': the clients are client-1, client-2, client-3"):
        STAGES["train"](run, Progress())
    assert not (run.folder / "arms").exists()


def row(sample: str, value: float | None) -> ImageScore:
    return ImageScore(0, 0, sample, {} if value is None else dict.fromkeys(COLUMNS, value))


def test_table_by_hand() -> None:
    """Two images, two rounds: rounds of one image are averaged first; differences are paired by image."""
    scores = [
        Score("none", "ig", 0, "a", (row("x", 10.0),)),
        Score("none", "ig", 1, "a", (row("x", 20.0),)),
        Score("none", "ig", 0, "b", (row("y", 31.0),)),
        Score("none", "ig", 1, "b", (row("y", 31.0),)),
        Score("shadow", "ig", 0, "a", (row("x", 5.0),)),
        Score("shadow", "ig", 1, "a", (row("x", 5.0),)),
        Score("shadow", "ig", 0, "b", (row("y", None),)),
        Score(MEAN_IMAGE, "ig", 0, "a", (row("x", 8.0),)),
    ]
    arms = [Row(arm=arm, images=0, metrics={}) for arm in ("none", "shadow", MEAN_IMAGE)]
    rows = score_table(scores, arms, "ig", None).rows
    assert [entry.images for entry in rows] == [2, 2, 1]
    psnr = rows[0].metrics["psnr_whole"]
    assert psnr.mean == pytest.approx((15 + 31) / 2)
    # t(0.975, 1 degree) = 12.706; s of (15, 31) is 16 / sqrt 2, over sqrt 2 images: half width 12.706 * 8.
    assert psnr.interval is not None
    assert (psnr.interval[1] - psnr.interval[0]) / 2 == pytest.approx(12.7062 * 8, rel=1e-4)
    assert rows[0].difference == {}
    assert rows[1].difference["psnr_whole"] == Estimate(-10.0, None, 1)
    only_last = score_table(scores, arms, "ig", 1)
    assert only_last.round == 2
    assert only_last.rows[0].metrics["psnr_whole"].mean == pytest.approx((20 + 31) / 2)


def test_foreground_is_the_lesion_where_it_is_known(tiny: dict[str, Any], tmp_path: Path) -> None:
    from shadow_defense.experiment.tasks.scoring import Foreground

    tiny["data"] = {"source": "chest_phantom", "images": 40, "image_size": 16, "split": tiny["data"]["split"]}
    tiny["arms"] = {"fedavg": {"defense": "none"}}
    run = Run.create(tmp_path / "run", config_from(tiny))
    train_arm(run, "fedavg")
    images: ImageSet = run.client("client-1").train
    foreground = Foreground(run, run.arm_folder("fedavg"))
    assert images.masks is not None
    assert torch.equal(foreground.masks(images), images.masks)
    unknown = ImageSet(images.images, images.labels, images.sample_ids)
    found = foreground.masks(unknown)
    assert found is not None and found.sum().item() <= int(16 * 16 * 0.3)


def test_of_a_model_without_a_feature_map_nothing_is_said_of_a_foreground(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program from a file is such a model: its run ended in an error once all was trained and attacked."""
    from shadow_defense.experiment.tasks import scoring

    monkeypatch.setattr(scoring, "final_model", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(256, 2)))
    run = Run(tmp_path / "run", config_from(tiny))
    images = run.client("client-1").train
    masks = scoring.Foreground(run, tmp_path).masks(images)
    assert masks is None
    [row] = scoring.score_rows(images.unit_images(), images, masks, None)
    assert row.metrics["psnr_whole"] > 60 and "psnr_inside" not in row.metrics

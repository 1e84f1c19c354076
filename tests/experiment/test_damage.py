"""Folders and files that are not what a run left: one line that names the file and how to correct it, nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.config import config_from
from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.experiment.exhibits import collect_patients
from shadow_defense.experiment.plans.run import STAGES, pretrain_stage, read_results
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.scoring import SCORES
from shadow_defense.experiment.tasks.training import train_in_process
from shadow_defense.federated.rounds import MOST_EXPLAINED
from shadow_defense.files import write_tensors
from shadow_defense.progress import Progress
from tests.experiment.conftest import TINY, numbers
from tests.experiment.in_process import train_arm, written


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"model": {"name": "lenet", "normalisation": "group"}}, "set model.normalisation to none"),
        ({"metrics": {"lpips": "alexnet"}}, "'alexnet' has no weights"),
        ({"attacks": {"ig": {"clients": ["client-7"]}}}, "names 'client-7'"),
    ],
)
def test_what_a_later_stage_would_refuse_is_said_before_the_first(
    tiny: dict[str, Any], tmp_path: Path, change: dict[str, Any], wanted: str
) -> None:
    run = Run.create(tmp_path / "run", config_from({**tiny, **change}))
    with pytest.raises(ShadowDefenseError, match=wanted):
        pretrain_stage(run)
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "run.json"}


def test_restart_deletes_only_what_runs_write(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A user's own folder may well hold a config.yaml, beside the data."""
    folder = tmp_path / "project"
    Run.create(folder, config_from(tiny))
    (folder / "images").mkdir()
    (folder / "images" / "patient.png").write_bytes(b"irreplaceable")
    with pytest.raises(RunError, match=r"images was written by no run"):
        Run.create(folder, config_from(tiny), restart=True)
    assert (folder / "images" / "patient.png").read_bytes() == b"irreplaceable"


@pytest.mark.parametrize(
    "content", [b"", b"title: [", b"\xff\xfe", b"- 1\n", b"seed: many\n", b"arms: {x: {defense: y}}\n"]
)
def test_a_damaged_configuration_is_one_line_and_restart_mends_it(
    tiny: dict[str, Any], tmp_path: Path, content: bytes
) -> None:
    run = Run.create(tmp_path / "run", config_from(tiny))
    (run.folder / "config.yaml").write_bytes(content)
    for attempt in (lambda: Run.open(run.folder), lambda: Run.create(run.folder, config_from(tiny))):
        with pytest.raises(RunError, match=r"config.yaml cannot be read as a configuration.*--restart") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert Run.create(run.folder, config_from(tiny), restart=True).config == run.config


def test_a_run_cannot_be_a_file_or_lie_in_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(RunError, match="is a file: choose another folder"):
        Run.create(tmp_path / "file", config_from(tiny))
    with pytest.raises(RunError, match="cannot be used: Not a directory; choose another folder"):
        Run.create(tmp_path / "file" / "run", config_from(tiny))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose defended arm is trained."""
    run = Run.create(tmp_path_factory.mktemp("trained") / "run", config_from({**TINY, "workers": 0}))
    pretrain_stage(run)
    train_arm(run, "shadow")
    return run.folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global", "defense-client-1"])
def test_a_damaged_state_is_named_where_a_training_goes_on(trained: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    run = Run.open(tmp_path / "run")
    damaged = run.arm_folder("shadow") / "state-0003" / f"{name}.safetensors"
    cut_in_half(damaged)
    with pytest.raises(RunError) as error:
        train_in_process(written(run, "shadow"))
    assert str(damaged) in str(error.value) and f"delete {run.arm_folder('shadow')}/history.json" in str(error.value)


@pytest.mark.slow
def test_every_damaged_file_is_named_and_mended_as_its_line_says(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A file cut in half: one line that names it; done as the line says, the run ends with the same numbers."""
    tiny["attacks"]["ig"]["rounds"] = [1]
    tiny["training"]["rounds"], tiny["data"]["split"]["sizes"] = 2, [1, 2]
    run = Run.create(tmp_path / "run", config_from({**tiny, "workers": 0}))
    stages = STAGES.values()
    to_results = [stage for name, stage in STAGES.items() if name != "report"]
    for stage in to_results:
        stage(run, Progress())
    whole = numbers(json.loads(run.results_path.read_text()))
    arm = run.arm_folder("shadow").resolve()
    rebuilt = run.reconstruction_path(Job("shadow", "ig", 0, "client-1")).resolve()
    score = next(run.store.place(task) / SCORES for task in run.scorings if task.arm == "shadow")
    damages = {
        arm / "history.json": arm / "history.json",
        arm / "round-0000" / "global.safetensors": arm / "history.json",
        arm / "round-0000" / "update-client-1.safetensors": arm / "history.json",
        arm / "round-0000" / "explanation-client-1.safetensors": arm / "history.json",
        rebuilt: rebuilt,
        score: score,
    }
    for damaged, deleted in damages.items():
        if damaged.name.startswith(("global", "update")):
            # Read by the attack alone.
            rebuilt.unlink(missing_ok=True)
        if damaged == rebuilt:
            score.unlink()
        cut_in_half(damaged)
        with pytest.raises(ShadowDefenseError) as error:
            for stage in stages:
                stage(run, Progress())
        line = str(error.value)
        # A training is named as people know it, or by its place in the store.
        names = [arm, run.arm_folder("shadow")] if arm in damaged.parents else [arm]
        places = [str(damaged).replace(str(arm), str(name)) for name in names]
        mends = ["delete it"] if damaged in (rebuilt, score) else [f"delete {name / deleted.name}" for name in names]
        assert any(place in line for place in places) and any(mend in line for mend in mends) and "\n" not in line
        deleted.unlink()
        for stage in to_results:
            stage(run, Progress())
        assert numbers(json.loads(run.results_path.read_text())) == whole, damaged
    found = json.loads(run.results_path.read_text())
    found["sights"][0]["reconstruction"] = 7
    for text in ("{", json.dumps(found)):
        run.results_path.write_text(text)
        with pytest.raises(RunError, match=r"results.json.*run `shadow-defense evaluate"):
            STAGES["report"](run, Progress())
        STAGES["evaluate"](run, Progress())
    STAGES["report"](run, Progress())


def test_a_state_of_another_model_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["arms"] = {"fedavg": {"defense": "none"}}
    run = Run.create(tmp_path / "run", config_from(tiny))
    train_arm(run, "fedavg")
    write_tensors(run.arm_folder("fedavg") / "state-0003" / "global.safetensors", {"other": torch.zeros(1)})
    with pytest.raises(RunError, match=r"global.safetensors is of another model; delete .*history.json"):
        train_in_process(written(run, "fedavg"))
    (run.arm_folder("fedavg") / "history.json").write_text("{}")
    with pytest.raises(RunError, match=r"history.json has no 'rounds_done': .*; delete"):
        train_in_process(written(run, "fedavg"))


@pytest.mark.slow
def test_the_report_of_a_client_with_more_images_than_are_explained(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["split"]["sizes"] = [MOST_EXPLAINED + 4]
    tiny["attacks"]["ig"] = {"options": {"iterations": 1}, "rounds": [1]}
    tiny["training"]["rounds"] = 1
    tiny["arms"] = {"shadow": {"defense": "shadow", "options": {"latent_iterations": 1}}}
    run = Run.create(tmp_path / "run", config_from({**tiny, "workers": 0}))
    for stage in ("train", "attack", "evaluate"):
        STAGES[stage](run, Progress())
    patients = collect_patients(run, read_results(run))
    names = run.client("client-1").train.sample_ids
    assert [patient.sample_id for patient in patients] == list(names)
    explained = ["shadow" in patient.explained.get(1, {}) for patient in patients]
    assert explained == [True] * MOST_EXPLAINED + [False] * 4

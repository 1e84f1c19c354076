"""Comparisons as they run: what is refused, what fails alone, and what is scored and shown."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import DefenseError, RunError
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison import measuring, running
from shadow_defense.experiment.comparison.cell_scores import score_cells
from shadow_defense.experiment.comparison.cells import Cell, GridRun
from shadow_defense.experiment.comparison.gathering import control_of, in_all_rounds
from shadow_defense.experiment.comparison.isolation import KILLED, run_isolated
from shadow_defense.experiment.comparison.measuring import Measurements
from shadow_defense.experiment.comparison.pictures import pictures
from shadow_defense.experiment.comparison.running import Comparison
from shadow_defense.experiment.scoring import Score, score_rows
from shadow_defense.experiment.workers import Call
from shadow_defense.progress import Progress
from tests.experiment.comparison_grid import fixed_cost, grid, the_run


def succeed(path: Path) -> None:
    path.write_text("done")


def fail_as_a_user(path: Path) -> None:
    raise DefenseError("too strong")


def fail_as_a_programmer(path: Path) -> None:
    raise KeyError("lost")


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class TestIsolation:
    def test_failures_and_deaths_leave_the_others_alone(self, tmp_path: Path) -> None:
        work = {"a": succeed, "b": fail_as_a_user, "c": die, "d": succeed, "e": fail_as_a_programmer, "f": succeed}
        failed = run_isolated(
            {name: Call(function, (tmp_path / name,)) for name, function in work.items()},
            traces=tmp_path / "traces",
            workers=2,
            threads=1,
            name="",
            total_steps=0,
            progress=Progress(),
        )
        assert {name for name in work if (tmp_path / name).exists()} == {"a", "d", "f"}
        assert failed["b"] == "too strong"
        assert failed["c"] == KILLED
        assert failed["e"].startswith("KeyError: 'lost' (trace in ")
        (trace,) = (tmp_path / "traces").iterdir()
        assert "fail_as_a_programmer" in trace.read_text()


def test_a_model_that_cannot_carry_a_defense_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    batch = {"convnet": {"model": {"name": "convnet", "normalisation": "batch", "width": 8}}}
    defenses = {"fedavg": {"defense": "none"}, "dp": {"defense": "dp-sgd"}}
    with pytest.raises(DefenseError, match=r"^dp with convnet: .*normalisation.*leave the pair out: leave_out"):
        Comparison(tmp_path / "out", grid(models=batch, defenses=defenses)).run()
    assert not (tmp_path / "out" / "cells").exists()


def test_a_swept_defense_is_left_out_by_its_own_name(tmp_path: Path) -> None:
    batch = {"convnet": {"model": {"name": "convnet", "normalisation": "batch", "width": 8}}}
    defenses = {"fedavg": {"defense": "none"}, "dp": {"defense": "dp-sgd", "sweep": {"preset": ["weak", "paper"]}}}
    with pytest.raises(DefenseError, match=r"^dp-weak with convnet: .*leave_out: \[\{model: convnet, defense: dp, "):
        Comparison(tmp_path, grid(models=batch, defenses=defenses)).check()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used: Not a directory; choose another folder with --out"):
        Comparison(tmp_path / "file" / "out", grid()).check()


def test_the_data_of_many_runs_are_loaded_once(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, grid(seeds=list(range(12))))
    first = [run for _, _, run in comparison.runs()]
    assert all(run is again for run, (_, _, again) in zip(first, comparison.runs(), strict=True))


def test_cells_that_nothing_tells_apart_are_computed_once_and_fail_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two processes would write the same folder at once."""
    twins = {"fedavg": {"defense": "none"}, "a": {"defense": "noise"}, "b": {"defense": "noise", "preset": "paper"}}
    comparison = Comparison(tmp_path, grid(defenses=twins, seeds=[0]))
    run = comparison.of("convnet", 0)
    trained: list[str] = []
    attacked: list[str] = []

    def pretend(calls: dict[Path, Call], **_: Any) -> dict[Path, str]:
        failed = {}
        for place, call in calls.items():
            what = call.arguments[4]
            if isinstance(what, Job):
                attacked.append(run.attack_key(what))
            else:
                trained.append(run.training_key(what))
                if what in ("a", "b"):
                    failed[place] = "broken"
        return failed

    monkeypatch.setattr(running, "run_isolated", pretend)
    monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
    monkeypatch.setattr(Measurements, "_measure_attack", lambda *_: None)
    comparison.run()
    assert len(trained) == len(set(trained)) == 2
    # The undefended update and the random one, two rounds of two clients: none on a training that failed.
    assert len(attacked) == len(set(attacked)) == 2 * 2 * 2
    assert set(comparison.failures) == {f"convnet, seed 0, {arm}: training" for arm in ("a", "b")}


def journal(run: GridRun, arm: str, text: str) -> None:
    folder = run.arm_folder(arm)
    folder.mkdir(parents=True)
    (folder / "history.json").write_text(text)


@pytest.mark.parametrize("text", ['{"rounds_done": 1, "history": [{}]}', "{damaged"])
def test_a_seed_whose_reference_is_not_finished_is_left_unscored(tmp_path: Path, text: str) -> None:
    comparison = Comparison(tmp_path, grid())
    run = comparison.of("convnet", 0)
    journal(run, "fedavg", text)
    job = Job("noise-weak", "inverting-gradients", 0, "client-1")
    images = run.client("client-1").train.unit_images()
    found = Reconstruction(images, torch.zeros(1, dtype=torch.int64), 0.0, 1, 1.0)
    found.save(run.reconstruction_path("noise-weak", job.attack, 0, "client-1"))
    assert score_cells(comparison) == {"convnet": []}
    assert not comparison.is_done(Cell("convnet", 0, "fedavg"))


def test_pictures_show_the_reconstruction_of_the_image_beside_it(tmp_path: Path) -> None:
    """Attacks return a client's images in no telling order."""
    attacks = {"inverting-gradients": {"clients": ["client-3"], "rounds": [1]}}
    comparison = Comparison(tmp_path, grid(attacks=attacks))
    run = comparison.of("convnet", 0)
    truths = run.client("client-3").train
    images = truths.unit_images().flip(0)
    path = run.reconstruction_path("fedavg", "inverting-gradients", 0, "client-3")
    Reconstruction(images, truths.labels.flip(0), 0.0, 1, 1.0).save(path)
    score = Score(
        "fedavg", "inverting-gradients", 0, "seed 0, client-3", score_rows(images, truths, torch.ones(4, 16, 16), None)
    )
    (shown,) = pictures(comparison, {"convnet": [score]})
    assert torch.equal(shown.rebuilt["fedavg"], shown.original)


def test_an_image_that_was_missed_in_a_round_is_in_no_mean_over_all_rounds(tmp_path: Path) -> None:
    config = the_run(tmp_path).config
    scores = [
        Score(arm, "inverting-gradients", round, client, ())
        for arm, round, client in (("a", 0, "c"), ("a", 1, "c"), ("b", 0, "c"), ("b", 1, "d"), ("b", 0, "d"))
    ]
    kept = in_all_rounds(scores, "inverting-gradients", config)
    assert [(score.arm, score.round, score.client) for score in kept] == [
        *(("a", 0, "c"), ("a", 1, "c"), ("b", 1, "d"), ("b", 0, "d"))
    ]


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="holds files that no comparison wrote"):
        Comparison(tmp_path, grid())


def test_a_control_is_found_by_what_settings_resolve_to() -> None:
    """The preset `calibrated` is the paper's with strength 0.6: however it is written, it is the same noise."""

    def arm(preset: str = "paper", share_bn: str = "all", **options: Any) -> DefenseSettings:
        given = {"defense": "shadow", "preset": preset, "share_bn": share_bn, "options": options}
        return DefenseSettings.model_validate(given)

    arms = {
        "none": DefenseSettings(),
        "weak": arm(),
        "strong": arm(strength=0.6),
        "private": arm(strength=0.6, share_bn="none"),
        "shuffled": arm(strength=0.6, placement="shuffled"),
        "uniform": arm("calibrated", placement="uniform"),
    }
    found = {name: control_of(name, arms) for name in arms}
    assert found == {**dict.fromkeys(arms), "strong": "uniform", "shuffled": "uniform"}

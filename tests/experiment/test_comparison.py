"""Comparisons as they run: what is refused, what fails alone, and what is scored and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import DefenseError, RunError
from shadow_defense.experiment.analysis import control_of
from shadow_defense.experiment.plans.comparison.gathering import in_all_rounds, pictures
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks import measuring
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION, Attacking
from shadow_defense.experiment.tasks.scoring import Score, Scoring, score_rows
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.progress import Progress
from shadow_defense.report.records.scores import MEAN_IMAGE, RANDOM_UPDATE
from tests.experiment.comparison_grid import fixed_cost, grid, the_scene


def test_a_model_that_cannot_carry_a_defense_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    batch = {"convnet": {"model": {"name": "convnet", "normalisation": "batch", "width": 8}}}
    defenses = {"fedavg": {"defense": "none"}, "dp": {"defense": "dp-sgd"}}
    with pytest.raises(DefenseError, match=r"^dp with convnet: .*normalisation.*leave the pair out: leave_out"):
        Comparison(tmp_path / "out", grid(models=batch, defenses=defenses)).run()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("store/*"))


def test_a_swept_defense_is_left_out_by_its_own_name(tmp_path: Path) -> None:
    batch = {"convnet": {"model": {"name": "convnet", "normalisation": "batch", "width": 8}}}
    defenses = {"fedavg": {"defense": "none"}, "dp": {"defense": "dp-sgd", "sweep": {"preset": ["weak", "paper"]}}}
    with pytest.raises(DefenseError, match=r"^dp-weak with convnet: .*leave_out: \[\{model: convnet, defense: dp, "):
        Comparison(tmp_path / "out", grid(models=batch, defenses=defenses)).check()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used: Not a directory; choose another folder with --out"):
        Comparison(tmp_path / "file" / "out", grid())


def test_the_data_of_many_runs_are_loaded_once(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path / "out", grid(seeds=list(range(12))))
    first = [trial for _, trial in comparison.trials()]
    assert all(trial is again for trial, (_, again) in zip(first, comparison.trials(), strict=True))


@pytest.mark.slow
def test_arms_that_nothing_tells_apart_are_one_task_and_fail_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two processes would write the same folder at once."""
    twins = {"fedavg": {"defense": "none"}, "a": {"defense": "noise"}, "b": {"defense": "noise", "preset": "paper"}}
    comparison = Comparison(tmp_path / "out", grid(defenses=twins, seeds=[0], workers=0))
    trained: list[str] = []
    whole = Training.compute

    def compute(task: Training, store: Store, progress: Progress) -> None:
        trained.append(task.key)
        if task.arm in ("a", "b"):
            raise RunError("broken")
        whole(task, store, progress)

    monkeypatch.setattr(Training, "compute", compute)
    monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
    comparison.run()
    assert len(trained) == len(set(trained)) == 2
    assert {f"convnet, seed 0, {arm}: training" for arm in ("a", "b")} <= comparison.failures.keys()
    arms = [score.arm for score in comparison.scores()["convnet"]]
    # Two rounds of two clients, and none on a training that failed.
    assert {arm: arms.count(arm) for arm in arms} == {"fedavg": 4, RANDOM_UPDATE: 4, MEAN_IMAGE: 4}


def test_pictures_show_the_reconstruction_of_the_image_beside_it(tmp_path: Path) -> None:
    """Attacks return a client's images in no telling order."""
    attacks = {"inverting-gradients": {"clients": ["client-3"], "rounds": [1]}}
    comparison = Comparison(tmp_path / "out", grid(attacks=attacks))
    run = comparison.trial("convnet", 0)
    truths = run.client("client-3").train
    images = truths.unit_images().flip(0)
    attack = Attacking(run, Job("fedavg", "inverting-gradients", 0, "client-3"), run.trainings["fedavg"])
    path = comparison.store.place(attack) / RECONSTRUCTION
    Reconstruction(images, truths.labels.flip(0), 0.0, 1, 1.0).save(path)
    rows = score_rows(images, truths, torch.ones(4, 16, 16), None)
    scoring = Scoring(attack, run.trainings["fedavg"])
    scoring.save(comparison.store, Score("fedavg", "inverting-gradients", 0, "client-3", rows))
    comparison.store.record(scoring)
    (shown,) = pictures(comparison.first_trials())
    assert torch.equal(shown.rebuilt["fedavg"], shown.original)


def test_an_image_that_was_missed_in_a_round_is_in_no_mean_over_all_rounds(tmp_path: Path) -> None:
    config = the_scene(tmp_path).config
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
    """However they are written, the same settings are the same noise: the article's, spelt out, are the preset's."""

    def arm(preset: str = "paper", share_bn: str = "all", **options: Any) -> DefenseSettings:
        given = {"defense": "shadow", "preset": preset, "share_bn": share_bn, "options": options}
        return DefenseSettings.model_validate(given)

    arms = {
        "none": DefenseSettings(),
        "weak": arm(),
        "strong": arm(vulnerability_temperature=1.0, momentum=0.9),
        "private": arm(vulnerability_temperature=1.0, momentum=0.9, share_bn="none"),
        "shuffled": arm(vulnerability_temperature=1.0, momentum=0.9, placement="shuffled"),
        "uniform": arm("article", placement="uniform"),
    }
    found = {name: control_of(name, arms) for name in arms}
    assert found == {**dict.fromkeys(arms), "strong": "uniform", "shuffled": "uniform"}

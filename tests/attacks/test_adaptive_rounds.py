"""A run keeps the rounds that an adaptive attack uses besides the attacked ones, and hands them over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tests.experiment.conftest import TINY

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.config import config_from
from shadow_defense.experiment.attacking import attack_stage, build_observation, jobs
from shadow_defense.experiment.comparison.cells import GridRun
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.training import train_arm
from shadow_defense.federated.rounds import round_folder


def config(rounds: int, attacked: list[int] | None = None) -> dict[str, Any]:
    values = copy.deepcopy(TINY)
    values["arms"] = {"sparse": {"defense": "gradient-sparsification", "options": {"percent": 90.0}}}
    values["workers"] = 1
    values["attacks"]["ig"] |= {
        "adaptive": {"rounds": rounds},
        "threat_model": "adaptive server",
        "rounds": attacked or [3],
        "options": {"iterations": 2},
    }
    return values


def test_the_rounds_before_are_kept_and_not_attacked(tmp_path: Path) -> None:
    run = Run(tmp_path, config_from(config(3, [1, 3])))
    small = frozenset({"client-1", "client-2"})
    assert run.kept() == {0: small, 1: small, 2: small}
    assert sorted({job.round for job in jobs(run)}) == [0, 2]
    assert Run(tmp_path, config_from(config(2))).kept() == {1: small, 2: small}
    assert Run(tmp_path, config_from(config(1))).kept() == {2: small}
    # More rounds than there were before.
    assert Run(tmp_path, config_from(config(9, [2]))).kept() == {0: small, 1: small}


def test_a_comparison_trains_anew_for_rounds_that_were_not_kept(tmp_path: Path) -> None:
    keys = {GridRun(tmp_path, config_from(config(rounds))).training_key("sparse") for rounds in (1, 2, 3)}
    assert len(keys) == 3
    one, two = (GridRun(tmp_path, config_from(config(rounds, [1, 2, 3]))) for rounds in (1, 2))
    assert one.training_key("sparse") == two.training_key("sparse")
    job = jobs(one)[0]
    assert one.attack_key(job) != two.attack_key(job)


def test_observations_of_the_rounds_before_reach_the_attack(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config_from(config(3)))
    train_arm(run, "sparse")
    job = jobs(run)[0]
    seen = build_observation(run, job, run.new_model("sparse"))
    assert [each.update.round for each in seen.earlier] == [0, 1]
    assert {each.update.client for each in seen.earlier} == {seen.update.client} == {"client-1"}
    assert seen.rounds == 3 and seen.defense.defense == "gradient-sparsification"
    name = "classifier.weight"
    assert not torch.equal(seen.earlier[0].global_state[name], seen.earlier[1].global_state[name])
    # A round whose file is gone is left out, and the attack says so.
    (round_folder(run.arm_folder("sparse"), 0) / "update-client-1.safetensors").unlink()
    seen = build_observation(run, job, run.new_model("sparse"))
    assert [each.update.round for each in seen.earlier] == [1]
    attack_stage(run)
    found = Reconstruction.load(run.reconstruction_path("sparse", "ig", 2, "client-1"))
    assert any(note.startswith("2 of 3 rounds") for note in found.notes)
    assert any("of the entries are zero" in note for note in found.notes)

"""A run keeps the rounds that an adaptive attack uses besides the attacked ones, and hands them over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiment.conftest import TINY
from tests.experiment.in_process import train_arm

from shadow_defense.attacks.build import reconstruct
from shadow_defense.config import config_from
from shadow_defense.experiment.run import Run
from shadow_defense.federated.training_folder import kept_updates, round_folder
from shadow_defense.files import read_tensors
from shadow_defense.progress import Task


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
    assert run.kept == {0: small, 1: small, 2: small}
    assert sorted({job.round for job in run.jobs()}) == [0, 2]
    assert Run(tmp_path, config_from(config(2))).kept == {1: small, 2: small}
    assert Run(tmp_path, config_from(config(1))).kept == {2: small}
    # More rounds than there were before.
    assert Run(tmp_path, config_from(config(9, [2]))).kept == {0: small, 1: small}


@pytest.mark.slow
def test_a_training_that_kept_fewer_rounds_trains_again_to_the_same_numbers(tmp_path: Path) -> None:
    few, more = (Run.create(tmp_path / f"run-{rounds}", config_from(config(rounds))) for rounds in (1, 3))
    assert few.trainings["sparse"].key == more.trainings["sparse"].key
    train_arm(few, "sparse")
    assert not more.store.has(more.trainings["sparse"])
    train_arm(more, "sparse")
    assert more.store.has(few.trainings["sparse"])
    path = round_folder(Path(), 2) / "update-client-1.safetensors"
    first, second = (read_tensors(run.arm_folder("sparse") / path)[0] for run in (few, more))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    # What one process has trained with few is gone on with: its own rounds stay kept.
    folder = few.folder.parent / "more-in-few"
    few.folder.rename(folder)
    few = Run(folder, more.config)
    train_arm(few, "sparse")
    assert {round for round, _ in kept_updates(few.arm_folder("sparse"))} == {0, 1, 2}
    one, two = (Run(tmp_path, config_from(config(rounds, [1, 2, 3]))) for rounds in (1, 2))
    assert one.attacking(one.jobs()[0]).key != two.attacking(two.jobs()[0]).key


def test_observations_of_the_rounds_before_reach_the_attack(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config_from(config(3)))
    train_arm(run, "sparse")
    job = run.jobs()[0]
    seen = run.observation(job)
    assert [each.update.round for each in seen.earlier] == [0, 1]
    assert {each.update.client for each in seen.earlier} == {seen.update.client} == {"client-1"}
    assert seen.rounds == 3 and seen.defense.defense == "gradient-sparsification"
    name = "classifier.weight"
    assert not torch.equal(seen.earlier[0].global_state[name], seen.earlier[1].global_state[name])
    # A round whose file is gone is left out, and the attack says so.
    (round_folder(run.arm_folder("sparse"), 0) / "update-client-1.safetensors").unlink()
    seen = run.observation(job)
    assert [each.update.round for each in seen.earlier] == [1]
    found = reconstruct(run.config.attacks["ig"], seen, 0, Task())
    assert any(note.startswith("2 of 3 rounds") for note in found.notes)
    assert any("of the entries are zero" in note for note in found.notes)

"""A run by secure aggregation: from the configuration to an attack on what the server saw, the average."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from tests.experiment.in_process import train_arm, written
from tests.federated.flower.in_process_grid import start
from tests.federated.flower.secure_aggregation.secure_sites import SecureGrid

from shadow_defense.config import config_from
from shadow_defense.errors import RunError
from shadow_defense.experiment import flower_apps
from shadow_defense.experiment.audit.of_run import case_of_run
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.flower_apps import train_arm_in_simulation
from shadow_defense.experiment.run import Run
from shadow_defense.federated.flower.secure_aggregation.fixed_point import FixedPoint
from shadow_defense.files import read_json, read_tensors

TINY = """
data: {source: faces, image_size: 16, split: {kind: sizes, sizes: [1, 3]}}
model: {name: convnet, width: 8, activation: gelu}
training: {rounds: 1, learning_rate: 0.05}
arms: {plain: {defense: none}}
attacks: {ig: {attack: inverting-gradients, options: {iterations: 8}}}
metrics: {lpips: null}
workers: 0
"""


def run(folder: Path, text: str = TINY) -> Run:
    return Run.create(folder, config_from(yaml.safe_load(text)))


def final(made: Run) -> dict[str, torch.Tensor]:
    return read_tensors(made.arm_folder("plain") / "state-0001" / "global.safetensors")[0]


def assert_up_to_the_fixed_point(found: Run, expected: Run) -> None:
    error = FixedPoint(2, 4).largest_error(4, 2)
    for name, tensor in final(expected).items():
        difference = (final(found)[name].double() - tensor.double()).abs()
        assert bool((difference <= error + 2**-23 * (1 + tensor.abs())).all()), name


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def simulate(server: ServerApp, client: ClientApp, *, clients: int, at_once: int) -> None:
        start(server, SecureGrid(client, clients))

    monkeypatch.setattr(flower_apps, "simulate", simulate)


@pytest.mark.usefixtures("without_ray")
def test_what_is_attacked_is_the_average(tmp_path: Path) -> None:
    alone, secure = run(tmp_path / "alone"), run(tmp_path / "secure")
    train_arm(alone, "plain")
    assert [job.client for job in alone.jobs()] == ["client-1", "client-2"]
    train_arm_in_simulation(written(secure, "plain"), secure=True)
    assert_up_to_the_fixed_point(secure, alone)
    assert [(job.client, job.round) for job in secure.jobs()] == [("all-clients", 0)]
    together = secure.client("all-clients")
    assert len(together.train) == 4 and together.batch_size == sum(
        min(client.batch_size, len(client.train)) for client in secure.dataset.clients
    )
    case = case_of_run(secure.folder, arm=None, round=None, client=None, attacks=(), threat_model=None, iterations=3)
    observation = case.observe("ig")
    assert case.name == "all-clients in round 1: No defense"
    assert case.truths is not None and len(case.truths) == 4
    assert sorted(observation.labels.tolist()) == sorted(together.train.labels.tolist())
    recorded, metadata = read_tensors(secure.arm_folder("plain") / "round-0000" / "update-all-clients.safetensors")
    assert metadata["samples"] == 4
    assert all(torch.equal(observation.update.tensors[name], tensor) for name, tensor in recorded.items())
    # As in one process, since it is one machine's own measurement.
    histories = [read_json(made.arm_folder("plain") / "history.json")["history"] for made in (alone, secure)]
    assert histories[0][0]["clients"] == histories[1][0]["clients"]


def test_an_attack_that_an_average_is_too_large_for_is_named_before_the_training(tmp_path: Path) -> None:
    made = run(tmp_path / "run", TINY.replace("{iterations: 8}", "{iterations: 8}, longest_client: 1"))
    with pytest.raises(RunError, match=r"over 4 only: begin a run with attacks\.ig\.longest_client=4") as raised:
        engine_named("flower-secure-aggregation").check_scene(made)
    assert "\n" not in str(raised.value)
    assert not made.arm_folder("plain").exists()


@pytest.mark.engine
@pytest.mark.slow
def test_a_run_by_secure_aggregation_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "shadow_defense.cli", "run", str(tmp_path / "tiny.yaml"), "--out", str(folder)]
    result = subprocess.run(
        [*command, "--engine", "flower-secure-aggregation", "--quiet"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    alone, secure = run(tmp_path / "alone"), Run.open(folder)
    train_arm(alone, "plain")
    assert_up_to_the_fixed_point(secure, alone)
    attacked = read_json(folder / "scores.json")
    assert {score["client"] for score in attacked} == {"all-clients"} and (folder / "report.html").exists()
    assert not list(folder.rglob("update-client-*"))

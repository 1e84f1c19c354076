"""A run's arm on Flower: from the configuration to the audit, in a process and in the simulation engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore import telemetry
from tests.experiment.in_process import train_arm, written
from tests.federated.flower.in_process_grid import InProcessGrid, start
from tests.federated.processes import LOOPBACK, listening, told

from shadow_defense.config import config_from
from shadow_defense.errors import ConfigError, RunError
from shadow_defense.experiment import flower_apps
from shadow_defense.experiment.audit.of_run import case_of_run
from shadow_defense.experiment.engines import ENGINES, engine_named
from shadow_defense.experiment.flower_apps import client_app, server_app, train_arm_in_simulation
from shadow_defense.experiment.run import Run
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.flower.environment import SILENT, be_silent
from shadow_defense.federated.flower.server_app import ROUND_TIMEOUT
from shadow_defense.files import read_json, read_tensors

TINY = """
data: {source: faces, image_size: 16, split: {kind: sizes, sizes: [1, 3]}}
model: {name: convnet, width: 8, activation: gelu}
training: {rounds: 2, learning_rate: 0.05}
arms: {dp: {defense: local-dp}}
attacks: {ig: {attack: inverting-gradients, options: {iterations: 8}, longest_client: 1}}
metrics: {lpips: null}
workers: 2
"""


def run(folder: Path, text: str = TINY) -> Run:
    return Run.create(folder, config_from(yaml.safe_load(text)))


def final(made: Run, arm: str = "dp") -> dict[str, torch.Tensor]:
    return read_tensors(made.arm_folder(arm) / "state-0002" / "global.safetensors")[0]


def without_seconds(made: Run) -> list[dict[str, object]]:
    history = read_json(made.arm_folder("dp") / "history.json")["history"]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def test_a_site_keeps_its_state_and_its_draws_to_itself(tmp_path: Path) -> None:
    """As in a deployment: the run's folder is the server's, each site has a copy of the configuration and a folder."""
    server, site = run(tmp_path / "server"), run(tmp_path / "site")
    begun = {path: path.read_bytes() for path in site.folder.iterdir()}
    grid = InProcessGrid(client_app(site.folder, "dp"), 2, {"state-dir": str(tmp_path / "home")})
    start(server_app(server.place("dp")), grid)
    assert {array.dtype for array in grid.replies[0].content["arrays"].values()} == {"float32"}
    assert {path: path.read_bytes() for path in site.folder.iterdir()} == begun
    for name in ("client-1", "client-2"):
        assert ClientStateFolder(tmp_path / "home", "site-dp", name).last() is not None
    # The noise is not that of the run's seed, which the server knows.
    alone = run(tmp_path / "alone")
    train_arm(alone, "dp")
    assert any(not torch.allclose(tensor, final(alone)[name], atol=1e-3) for name, tensor in final(server).items())
    assert [entry["round"] for entry in without_seconds(server)] == [0, 1]


def test_what_the_server_recorded_is_audited(tmp_path: Path) -> None:
    made = run(tmp_path / "run", TINY.replace("local-dp", "none"))
    start(server_app(made.place("dp")), InProcessGrid(client_app(written(made, "dp").folder, "dp", simulated=True), 2))
    case = case_of_run(made.folder, arm=None, round=None, client=None, attacks=(), threat_model=None, iterations=3)
    assert case.name == "client-1 in round 1: No defense"
    observation = case.observe("ig" if "ig" in case.attacks else next(iter(case.attacks)))
    alone = run(tmp_path / "alone", TINY.replace("local-dp", "none"))
    train_arm(alone, "dp")
    expected, _ = read_tensors(alone.arm_folder("dp") / "round-0000" / "update-client-1.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(observation.update.tensors[name], tensor)


def test_a_server_waits_for_a_time_that_ends_if_not_told_otherwise(tmp_path: Path) -> None:
    made = run(tmp_path / "run")
    grid = InProcessGrid(client_app(written(made, "dp").folder, "dp", simulated=True), 2)
    start(server_app(made.place("dp")), grid)
    assert set(grid.timeouts) == {ROUND_TIMEOUT}
    for timeout in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"timeout is {timeout}: expected seconds"):
            start(server_app(made.place("dp"), timeout=timeout), grid)


def test_a_node_that_does_not_know_who_it_is_sends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = run(tmp_path / "run")
    grid = InProcessGrid(client_app(written(made, "dp").folder, "dp", simulated=True), 2, {"partition-id": 7})
    with pytest.raises(RunError, match="0 usable updates"):
        start(server_app(made.place("dp")), grid)
    assert "partition-id=7): expected 0 to 1" in caplog.text


def test_a_site_with_its_own_images_only_is_the_client_of_its_node(tmp_path: Path) -> None:
    site = run(tmp_path / "site", TINY.replace("[1, 3]", "[4]"))
    server = run(tmp_path / "server")
    grid = InProcessGrid(client_app(site.folder, "dp"), 2, {"state-dir": str(tmp_path / "home"), "partition-id": 1})
    start(server_app(server.place("dp"), at_least=2), grid)
    assert {reply.content["metrics"]["partition-id"] for reply in grid.replies} == {1}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation as it is called, with its clients in this process."""

    def simulate(server: ServerApp, client: ClientApp, *, clients: int, at_once: int) -> None:
        grid = InProcessGrid(client, clients)
        start(server, grid)
        # All clients are on this machine: none can come back without its answer.
        assert set(grid.timeouts) == {None}

    monkeypatch.setattr(flower_apps, "simulate", simulate)
    # As the clients do: sums over more threads round differently.
    torch.set_num_threads(1)


@pytest.mark.usefixtures("without_ray")
def test_a_simulated_training_is_journalled_as_in_one_process_and_can_be_begun_again(tmp_path: Path) -> None:
    alone, simulated = run(tmp_path / "alone"), run(tmp_path / "simulated")
    train_arm(alone, "dp")
    train_arm_in_simulation(written(simulated, "dp"))
    assert without_seconds(simulated) == without_seconds(alone)
    assert "epsilon_spent" in str(without_seconds(simulated))
    # As the line about a damaged file says: the journal deleted, all is computed again.
    (simulated.arm_folder("dp") / "history.json").unlink()
    train_arm_in_simulation(written(simulated, "dp"))
    assert without_seconds(simulated) == without_seconds(alone)
    for name, tensor in final(alone).items():
        assert torch.equal(tensor, final(simulated)[name])


@pytest.mark.usefixtures("without_ray")
def test_of_clients_that_are_drawn_both_engines_train_and_attacks_see_the_same(tmp_path: Path) -> None:
    text = TINY.replace("[1, 3]", "[1, 3, 2]").replace("rounds: 2,", "rounds: 2, clients_per_round: 2,")
    alone, simulated = run(tmp_path / "alone", text), run(tmp_path / "simulated", text)
    train_arm(alone, "dp")
    train_arm_in_simulation(written(simulated, "dp"))
    assert without_seconds(simulated) == without_seconds(alone)
    assert [sorted(entry["clients"]) for entry in read_json(alone.arm_folder("dp") / "history.json")["history"]] == [
        ["client-1", "client-3"],
        ["client-2", "client-3"],
    ]
    # The attack is on client 1 in both rounds, which rests in the second.
    for made in (alone, simulated):
        (job,) = made.jobs()
        assert (job.round, job.client) == (0, "client-1")
        assert made.observation(job).update.samples == 1
    with pytest.raises(RunError, match=r"none of its clients is drawn for round 2; name others"):
        run(tmp_path / "none", text.replace("longest_client: 1", "longest_client: 1, rounds: [2]")).jobs()


@pytest.mark.usefixtures("without_ray")
def test_where_a_simulated_client_withholds_its_update_the_line_says_which_and_why(tmp_path: Path) -> None:
    simulated = run(tmp_path / "run")
    states = ClientStateFolder(simulated.arm_folder("dp"), "clients", "client-2")
    states.folder.mkdir(parents=True)
    (states.folder / "round-000000.safetensors").write_bytes(b"half")
    with pytest.raises(RunError, match=r"client 'client-2': update withheld: RunError: .*round-000000") as raised:
        train_arm_in_simulation(written(simulated, "dp"))
    assert "\n" not in str(raised.value)


def test_an_arm_begun_in_one_process_is_not_gone_on_with(tmp_path: Path) -> None:
    made = run(tmp_path / "run")
    train_arm(made, "dp")
    with pytest.raises(RunError, match="was begun with another engine"):
        train_arm_in_simulation(written(made, "dp"))


def test_engines_by_name() -> None:
    assert set(ENGINES) == {"in-process", "flower-simulation", "flower-secure-aggregation"}
    with pytest.raises(ConfigError, match="did you mean 'flower-simulation'"):
        engine_named("flower-simulatio")


def test_without_flower_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    for name in [name for name in sys.modules if name.startswith("shadow_defense.federated.flower")]:
        monkeypatch.delitem(sys.modules, name)
    engine_named("in-process").check()
    with pytest.raises(RunError, match=r"^Flower is not installed.*shadow-defense\[flower\]") as raised:
        engine_named("flower-simulation").check()
    assert "\n" not in str(raised.value)


def test_flower_is_silent_but_where_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
    for name in SILENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "0")
    be_silent()
    assert {name: os.environ[name] for name in SILENT} == {**SILENT, "FLWR_DISABLE_UPDATE_CHECK": "0"}


@pytest.mark.engine
@pytest.mark.slow
def test_the_simulation_engine_gives_the_same_numbers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    alone, simulated = run(tmp_path / "alone"), run(tmp_path / "simulated")
    train_arm(alone, "dp")
    temporary = Path(tempfile.mkdtemp(prefix="t-"))
    config = simulated.folder / "config.yaml"
    command = [sys.executable, "-m", "shadow_defense.cli", "train", str(tmp_path / "engine"), "--quiet"]
    simulated = Run(tmp_path / "engine", simulated.config)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "HOME": str(tmp_path)}
    listened = set[str]()
    try:
        with subprocess.Popen(
            [*command, "--config", str(config), "--engine", "flower-simulation"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            try:
                while process.poll() is None:
                    listened |= listening(told(str(temporary), "cmdline"))
                    time.sleep(0.5)
            finally:
                process.terminate()
            output, errors = process.communicate()
        # Nothing of the engine's own on the screen.
        assert (process.returncode, output, errors) == (0, "", "")
        assert not list(temporary.glob("flower-*")) and not (tmp_path / ".flwr").exists()
        assert listened and listened <= LOOPBACK
        assert told(str(temporary), "cmdline") == []
    finally:
        shutil.rmtree(temporary)
    for name, tensor in final(alone).items():
        assert torch.equal(tensor, final(simulated)[name])
    assert without_seconds(alone) == without_seconds(simulated)


def test_a_site_says_over_how_many_images_it_evaluates_at_least(tmp_path: Path) -> None:
    made = run(tmp_path / "run")
    for given, said in ((1, True), (1000, False), ("all", False)):
        grid = InProcessGrid(
            client_app(made.folder, "dp"), 2, {"state-dir": str(tmp_path / str(given)), "least-evaluated": given}
        )
        FedAvg(min_train_nodes=2, min_available_nodes=2, min_evaluate_nodes=2).start(
            grid=grid, initial_arrays=ArrayRecord(made.new_model("dp").state_dict()), num_rounds=1
        )
        answers = [reply for reply in grid.replies if reply.metadata.message_type == "evaluate" and reply.has_content()]
        assert bool(answers) == said
        for reply in answers:
            client = made.dataset.clients[reply.metadata.src_node_id - 100]
            assert reply.content["metrics"]["num-examples"] == len(client.validation)

"""SuperLink and SuperNodes as deployed, on the loopback interface: a run with its audit, and what may go wrong."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from tests.experiment.in_process import train_arm
from tests.federated.processes import LOOPBACK, listening, talking, told

from shadow_defense.config import config_from
from shadow_defense.experiment.run import Run
from shadow_defense.federated.client_state import ClientState, ClientStateFolder
from shadow_defense.federated.flower.environment import SILENT
from shadow_defense.federated.flower.secure_aggregation.fixed_point import FixedPoint
from shadow_defense.federated.training_folder import round_folder, state_folder, update_path
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_json, read_tensors

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FAULTS = Path(__file__).parent / "faults"

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def told_of(folder: Path) -> list[Path]:
    """The running processes whose Flower home lies in a folder: all of a deployment, whoever started them."""
    return told(f"FLWR_HOME={folder}")


def wait_until(reached: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, f"after {seconds:.0f} s: {what}"
        time.sleep(0.3)


def half_written(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial*"))


@contextlib.contextmanager
def example_running(
    out: Path, *flags: str, example: Path = EXAMPLES / "flower-deployment"
) -> Iterator[subprocess.Popen[str]]:
    """The example's script; what it does not stop itself is a failure of the test that uses this."""
    command = [sys.executable, str(example / "deploy.py"), "--out", str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(out.parent)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def example_of_one_round(folder: Path, *arms: str) -> dict[str, Any]:
    """The example in a folder, with some of its arms, and its settings: each message of a round starts a process, and
    so would what makes the generator."""
    shutil.copytree(EXAMPLES / "flower-deployment", folder)
    values: dict[str, Any] = yaml.safe_load((folder / "federation.yaml").read_text())
    values["training"]["rounds"], values["workers"] = 1, 0
    values["arms"] = {arm: values["arms"][arm] for arm in arms}
    (folder / "federation.yaml").write_text(yaml.safe_dump(values))
    return values


def test_the_example_runs_audits_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """That states last from round to round, those in which things go wrong show below."""
    out, example = tmp_path / "out", tmp_path / "example"
    example_of_one_round(example, "none", "shadow")
    listened, talked, silent = set[str](), set[str](), True
    with example_running(out, example=example) as process:
        while process.poll() is None:
            running = told_of(out)
            listened |= listening(running)
            talked |= talking(running)
            for place in running:
                with contextlib.suppress(OSError):
                    given = (place / "environ").read_bytes().split(b"\0")
                    silent = silent and all(f"{name}={value}".encode() in given for name, value in SILENT.items())
            time.sleep(1)
        output, errors = process.communicate()
    assert process.returncode == 0, f"{output}\n{errors}"
    assert told_of(out) == []
    assert listened and listened <= LOOPBACK
    assert talked and talked <= LOOPBACK
    assert silent
    assert not (tmp_path / ".flwr").exists()
    # What the server recorded, and what the audit made of it.
    server = out / "server" / "hospitals"
    for arm in ("none", "shadow"):
        assert read_json(server / "arms" / arm / "history.json")["rounds_done"] == 1
        update = ModelUpdate.load(update_path(server / "arms" / arm, 0, "client-1"))
        assert (update.samples, update.steps) == (1, 1)
    assert rebuilt(out, "one-image-undefended") == (True, "client-1 in round 1: No defense", [])
    found, of, hides = rebuilt(out, "eight-images-undefended")
    assert not found and of == "client-3 in round 1: No defense"
    assert any("mean over a batch of 8 images" in sentence for sentence in hides)
    # Each run's noise is of a secret of its own, and the verdict may fall on either side of its bound.
    assert rebuilt(out, "one-image-defended")[1] == "client-1 in round 1: Shadow"
    assert closest(out, "one-image-defended") < closest(out, "one-image-undefended") - 0.3
    # Every hospital keeps its own state, at home, and the server has none of it.
    for number in (1, 2, 3):
        home = out / f"hospital-{number}" / "state"
        for run in ("hospitals-none", "hospitals-shadow"):
            assert [folder.name for folder in (home / run).iterdir()] == [f"client-{number}"]
            last = ClientStateFolder(home, run, f"client-{number}").last()
            assert last is not None and last.round == 0
        key = out / "flower" / f"keys-{number - 1}" / "node.key"
        assert key.stat().st_mode & 0o077 == 0
    assert not list(server.rglob("*secret*")) and not half_written(out)


def test_by_secure_aggregation_the_server_has_the_average_and_no_update(tmp_path: Path) -> None:
    """One undefended round of the example: the average is that of a training in one process, which masks nothing."""
    out, example = tmp_path / "out", tmp_path / "example"
    values = example_of_one_round(example, "none")
    with example_running(out, "--secure", example=example) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, f"{output}\n{errors}"
    assert told_of(out) == []
    arm = out / "server" / "hospitals" / "arms" / "none"
    assert recorded(arm, 0) == ["all-clients"] and not list((out / "server").rglob("update-client*"))
    assert rebuilt(out, "average-undefended")[1] == "all-clients in round 1: No defense"
    alone = Run.create(tmp_path / "alone", config_from(values))
    train_arm(alone, "none")
    expected, found = (
        read_tensors(state_folder(folder, 1) / "global.safetensors")[0] for folder in (alone.arm_folder("none"), arm)
    )
    error = FixedPoint(3, 8).largest_error(13, 3)
    for name, tensor in expected.items():
        difference = (found[name].double() - tensor.double()).abs()
        assert bool((difference <= error + 2**-22 * (1 + tensor.abs())).all()), name


def rebuilt(out: Path, audit: str) -> tuple[bool, str, list[str]]:
    """Whether an image came out, of which update, and what the audit says hides it."""
    found = read_json(out / "audit" / audit / "audit.json")
    page = (out / "audit" / audit / "audit.html").read_text(encoding="utf-8")
    of = found["title"].removeprefix("Audit of ")
    assert of in page
    hides = [reason["sentence"] for reason in found["diagnosis"] if reason["effect"] == "hides"]
    return found["attacks"]["inverting-gradients"]["rebuilt"], of, hides


def closest(out: Path, audit: str) -> float:
    """SSIM of the closest that an audit came to an image."""
    [attack] = read_json(out / "audit" / audit / "audit.json")["attacks"].values()
    return max(float(row["ssim"]) for row in attack["rows"])


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's SuperLink and three SuperNodes, for an app of the test's own."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "flower-deployment"))
    nodes = [f'partition-id={number} state-dir="{tmp_path / f"hospital-{number + 1}"}"' for number in range(3)]
    with importlib.import_module("processes").Deployment(tmp_path / "flower", nodes) as running:
        yield running
    wait_until(lambda: told_of(tmp_path) == [], 60, "processes are left")


def last_state(folder: Path, run: str, number: int) -> ClientState:
    found = ClientStateFolder(folder / f"hospital-{number}", run, f"hospital-{number}").last()
    assert found is not None
    return found


def recorded(server: Path, round: int) -> list[str]:
    return sorted(path.stem.removeprefix("update-") for path in round_folder(server, round).glob("update-*"))


def check_withheld_updates(deployment: Any, folder: Path) -> None:
    """A hospital that raises and one that diverges, both well again after; and another one whose state is damaged."""
    server = folder / "server-a"
    faults = "hospital-1/0/raise hospital-2/0/nan hospital-3/1/damaged"
    log = deployment.run(FAULTS, run="a", server=str(server), rounds=2, faults=faults)
    assert read_json(server / "history.json")["rounds_done"] == 2, log
    assert [recorded(server, round) for round in range(2)] == [["hospital-3"], ["hospital-1", "hospital-2"]]
    for tensor in read_tensors(state_folder(server, 2) / "global.safetensors")[0].values():
        assert torch.isfinite(tensor).all()
    # The hospitals' logs say why, the server's only what kind of error it was.
    logs = ("superlink", "node-0", "node-1", "node-2")
    heard = [(deployment.folder / "logs" / f"{name}.log").read_text() for name in logs]
    assert "update withheld: ValueError; see the client's log" in log
    assert "Miller" not in heard[0] + log and "image 17 of patient Miller" in heard[1]
    assert "update withheld: UpdateError" in heard[2]
    assert "round-000000.safetensors" in heard[3] and "restore it from a copy" in heard[3]
    # The states: nobody else's is touched, and what failed counts for nothing.
    for number in (1, 2):
        assert (last_state(folder, "a", number).round, int(last_state(folder, "a", number).defense["releases"])) == (
            1,
            1,
        )
    third = ClientStateFolder(folder / "hospital-3", "a", "hospital-3")
    assert third.last_round() == 0 and "RunError" in (third.refusal() or "")
    assert ClientStateFolder(folder / "hospital-2", "a", "hospital-2").refusal() is None


def check_killed_supernode(deployment: Any, folder: Path, meanwhile: Callable[[], None]) -> None:
    """SIGKILL in mid-round: that round goes on without the hospital, and the next one with it."""
    server, said = folder / "server-b", list[str]()
    states = ClientStateFolder(folder / "hospital-2", "b", "hospital-2")
    settings = {"run": "b", "server": str(server), "rounds": 2, "faults": "hospital-2/0/hang"}
    run = Thread(target=lambda: said.append(deployment.run(FAULTS, **settings)), daemon=True)
    run.start()
    wait_until((states.folder / "hangs").exists, 180, "hospital-2 was not asked")
    node = deployment.nodes[1]
    os.kill(node.pid, signal.SIGKILL)
    node.wait()
    # SuperLink misses it after 60 seconds; what it had started ends by itself.
    meanwhile()
    wait_until((server / "history.json").exists, 180, "the round did not go on")
    assert [place for place in told_of(folder) if os.getpgid(int(place.name)) == node.pid] == []
    assert states.last_round() == -1 and not half_written(folder)
    deployment.start_node(1)
    run.join(240)
    assert not run.is_alive()
    assert read_json(server / "history.json")["rounds_done"] == 2, said
    assert recorded(server, 0) == ["hospital-1", "hospital-3"]
    assert recorded(server, 1) == ["hospital-1", "hospital-2", "hospital-3"]
    assert [int(last_state(folder, "b", number).defense["releases"]) for number in (1, 2, 3)] == [2, 1, 2]


def check_strangers(deployment: Any) -> None:
    """Nobody gets in without TLS, nor with a key that was not registered."""
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{deployment.address}/health", timeout=5)
    stranger = len(deployment.nodes)
    (deployment.folder / f"keys-{stranger}").mkdir()
    importlib.import_module("certificates").write_node_keys(deployment.folder / f"keys-{stranger}")
    deployment.node_configs += ("partition-id=0",)
    deployment.start_node(stranger)
    assert deployment.nodes[stranger].wait(120) != 0
    log = (deployment.folder / "logs" / f"node-{stranger}.log").read_text()
    assert "Failed to initialize the connection" in log and "SuperNode ID" not in log


def check_interrupted_example(folder: Path) -> None:
    """The example stops what it started."""
    out, example = folder / "out", folder / "example"
    example_of_one_round(example, "none")
    with example_running(out, example=example) as process:
        log = out / "flower" / "logs" / "node-0.log"
        wait_until(lambda: log.exists() or process.poll() is not None, 180, "no SuperNode was started")
        assert len(told_of(out)) >= 2
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=600)
    assert process.returncode != 0 and "interrupted: all processes are stopped" in errors, f"{output}\n{errors}"
    wait_until(lambda: told_of(out) == [], 60, "processes are left")


def test_an_interrupt_waits_until_a_started_process_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came between a process's start and its entry left the process running, known to nobody."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "flower-deployment"))
    known = []
    # What a shell starts in the background ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), importlib.import_module("processes").signals_later():
            signal.raise_signal(signal.SIGINT)
            known.append("a process")
        assert known == ["a process"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_survives_refusals_damage_and_a_killed_supernode(deployment: Any, tmp_path: Path) -> None:
    """In one deployment, since starting one takes longer than a round."""
    check_withheld_updates(deployment, tmp_path)

    def meanwhile() -> None:
        check_strangers(deployment)
        check_interrupted_example(tmp_path / "interrupted")

    check_killed_supernode(deployment, tmp_path, meanwhile)
    assert not half_written(tmp_path)

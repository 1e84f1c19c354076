"""The quickstart as its page says: `flwr run .`, two simulated clients, and an audit of what the server saw."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.experiment.protecting.conftest import FOUND
from tests.federated.flower.in_process_grid import InProcessGrid, start
from tests.federated.flower.test_deployment import told_of, wait_until
from tests.federated.processes import LOOPBACK, listening

import shadow_defense
from shadow_defense.experiment.audit.of_run import case_of_run
from shadow_defense.experiment.protecting import in_memory
from shadow_defense.experiment.run import Run
from shadow_defense.federated.flower.environment import SILENT
from shadow_defense.files import read_json
from shadow_defense.generators.build import save_generator
from shadow_defense.generators.dcgan import DCGANGenerator

HOST = "127.0.0.1"
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


class Flower:
    """A SuperLink for all runs of this file, which `flwr run` would start itself, but gives up after 15 seconds."""

    def __init__(self, home: Path) -> None:
        self.home, self.states = home, home / "states"
        with socket.socket() as found:
            found.bind((HOST, 0))
            self.port = str(found.getsockname()[1])
        self.environment = {
            **os.environ,
            **SILENT,
            "HOME": str(home),
            "FLWR_HOME": str(home / "flower"),
            "RAY_TMPDIR": str(home),
            "SHADOW_DEFENSE_STATE": str(self.states),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def started(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=5):
                return True
        except OSError:
            return False

    def start(self) -> None:
        (self.home / "flower").mkdir()
        (self.home / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{HOST}:{self.port}"\ninsecure = true\n'
        )
        command = ["flower-superlink", "--insecure", "--simulation", "--host", HOST, "--port", self.port]
        with (self.home / "superlink.log").open("wb") as log:
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        wait_until(self.started, 120, "SuperLink did not start")

    def run(self, app: Path, configuration: str) -> str:
        """What `flwr run` printed, which ended well; every process of it listened on the loopback interface alone."""
        command = ["flwr", "run", str(app), "--stream", "--run-config", configuration]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=400, cwd=self.home)
        # The simulation's own end is told in words alone.
        assert done.returncode == 0 and "Exit Code" not in done.stdout + done.stderr, done.stdout + done.stderr
        assert listening(told_of(self.home)) <= LOOPBACK
        return done.stdout

    def stop(self) -> None:
        for place in told_of(self.home):
            if b"flower-superlink" in (place / "cmdline").read_bytes():
                os.kill(int(place.name), signal.SIGTERM)
        wait_until(lambda: told_of(self.home) == [], 60, "processes are left")


@pytest.fixture(scope="module")
def flower() -> Iterator[Flower]:
    """In a short folder, for the sockets that lie in it."""
    home = Path(tempfile.mkdtemp(prefix="q-"))
    flower = Flower(home)
    try:
        flower.start()
        yield flower
    finally:
        flower.stop()
        shutil.rmtree(home)


@pytest.mark.engine
@pytest.mark.slow
def test_the_quickstart_trains_and_records_what_an_audit_needs(flower: Flower, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = flower.run(EXAMPLES / "flower-quickstart", f'run-dir="{run}"')
    assert read_json(run / "arms" / "shadow" / "history.json")["rounds_done"] == 2, printed
    case = case_of_run(run, arm=None, round=None, client=None, attacks=(), threat_model=None, iterations=2)
    assert case.name == "client-1 in round 1: Shadow"


@pytest.mark.slow
def test_it_trains_on_a_protected_folder_without_a_changed_line_of_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only ``data:`` of its federation.yaml names the folder, as it would name any."""
    monkeypatch.setenv("SHADOW_DEFENSE_STATE", str(tmp_path / "site"))
    # What removers make of them has no part in it.
    monkeypatch.setattr(in_memory, "audit_protection", lambda *_: FOUND)
    draws = np.random.default_rng(0)
    clean, public = (draws.integers(0, 256, (count, 16, 16), dtype=np.uint8) for count in (24, 60))
    labels = np.arange(24) % 2
    protected, _ = shadow_defense.protect(clean, labels, public=public, preset="white", strength=0.5)
    np.savez(tmp_path / "protected.npz", train_images=protected, train_labels=labels)
    app, run = tmp_path / "app", tmp_path / "run"
    shutil.copytree(EXAMPLES / "flower-quickstart" / "quickstart", app / "quickstart")
    settings = yaml.safe_load((app / "quickstart" / "federation.yaml").read_text())
    settings["data"] |= {"source": "npz", "path": str(tmp_path / "protected.npz")}
    (app / "quickstart" / "federation.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.syspath_prepend(str(app))
    client, server = (importlib.import_module(f"quickstart.{side}_app").app for side in ("client", "server"))
    start(server, InProcessGrid(client, 2, run_config={"run-dir": str(run)}), {"run-dir": str(run)})
    assert read_json(run / "arms" / "shadow" / "history.json")["rounds_done"] == 2
    known = {image.tobytes() for image in protected}
    clients = Run.open(run).dataset.clients
    assert all(image.numpy().tobytes() in known for client in clients for image in client.train.images)


@pytest.mark.engine
@pytest.mark.slow
def test_the_template_with_three_lines_is_defended_without_a_folder_for_states(flower: Flower) -> None:
    save_generator(flower.home / "shadow-generator.safetensors", DCGANGenerator(z_dim=8, width=4), "dcgan", {})
    measured = "simulations/*/*/partition-*/measurements.json"
    earlier = set(flower.states.glob(measured))
    printed = flower.run(EXAMPLES / "flower-template", "num-server-rounds=1")
    noise = [read_json(path)["noise_rms"] for path in set(flower.states.glob(measured)) - earlier]
    assert len(noise) == 2 and min(noise) > 0.01, printed

"""The quickstart as its page says: `flwr run .`, two simulated clients, and an audit of what the server saw."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.federated.flower.test_deployment import told_of, wait_until
from tests.federated.processes import LOOPBACK, listening

import shadow_defense
from shadow_defense.experiment.audit.of_run import case_of_run
from shadow_defense.experiment.run import Run
from shadow_defense.federated.flower.environment import SILENT
from shadow_defense.files import read_json
from shadow_defense.generators.build import save_generator
from shadow_defense.generators.dcgan import DCGANGenerator

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def home() -> Iterator[Path]:
    """A short folder for Flower and Ray, whose sockets lie in it; the SuperLink that `flwr run` leaves is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="q-"))
    try:
        yield folder
    finally:
        for place in told_of(folder):
            if b"flower-superlink" in (place / "cmdline").read_bytes():
                os.kill(int(place.name), signal.SIGTERM)
        wait_until(lambda: told_of(folder) == [], 60, "processes are left")
        shutil.rmtree(folder)


def flwr_run(app: Path, home: Path, folder: Path, configuration: str, **variables: str) -> str:
    """What `flwr run` printed, which ended well; every process of it listened on the loopback interface alone."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        **SILENT,
        "FLWR_HOME": str(home / "flower"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "RAY_TMPDIR": str(home),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    command = ["flwr", "run", str(app), "--stream", "--run-config", configuration]
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=folder)
        # Flower gives it 15 seconds, which a busy machine may take longer than.
        if "Failed to start local SuperLink" not in done.stdout + done.stderr:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert listening(told_of(home)) <= LOOPBACK
    return done.stdout


def test_the_quickstart_trains_and_records_what_an_audit_needs(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = flwr_run(EXAMPLES / "flower-quickstart", home, tmp_path, f'run-dir="{run}"')
    assert read_json(run / "arms" / "shadow" / "history.json")["rounds_done"] == 2, printed
    case = case_of_run(run, arm=None, round=None, client=None, attacks=(), threat_model=None, iterations=2)
    assert case.name == "client-1 in round 1: Shadow"


def test_it_trains_on_a_protected_folder_without_a_changed_line_of_code(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only ``data:`` of its federation.yaml names the folder, as it would name any."""
    monkeypatch.setenv("SHADOW_DEFENSE_STATE", str(tmp_path / "site"))
    draws = np.random.default_rng(0)
    clean, public = (draws.integers(0, 256, (count, 16, 16), dtype=np.uint8) for count in (24, 60))
    labels = np.arange(24) % 2
    protected, _ = shadow_defense.protect(
        clean, labels, public=public, preset="white", strength=0.5, audited=20, remover_steps=50
    )
    np.savez(tmp_path / "protected.npz", train_images=protected, train_labels=labels)
    app = tmp_path / "app"
    shutil.copytree(EXAMPLES / "flower-quickstart", app)
    settings = yaml.safe_load((app / "quickstart" / "federation.yaml").read_text())
    settings["data"] |= {"source": "npz", "path": str(tmp_path / "protected.npz")}
    (app / "quickstart" / "federation.yaml").write_text(yaml.safe_dump(settings))
    printed = flwr_run(app, home, tmp_path, f'run-dir="{tmp_path / "run"}"')
    assert read_json(tmp_path / "run" / "arms" / "shadow" / "history.json")["rounds_done"] == 2, printed
    dataset = Run.open(tmp_path / "run").dataset
    known = {image.tobytes() for image in protected}
    assert all(image.numpy().tobytes() in known for client in dataset.clients for image in client.train.images)


def test_the_template_with_three_lines_is_defended_without_a_folder_for_states(home: Path, tmp_path: Path) -> None:
    generator, states = DCGANGenerator(z_dim=8, width=4), tmp_path / "states"
    save_generator(tmp_path / "shadow-generator.safetensors", generator, "dcgan", {})
    variables = {"HOME": str(tmp_path), "SHADOW_DEFENSE_STATE": str(states)}
    printed = flwr_run(EXAMPLES / "flower-template", home, tmp_path, "num-server-rounds=1", **variables)
    noise = [read_json(path)["noise_rms"] for path in states.glob("simulations/*/*/partition-*/measurements.json")]
    assert len(noise) == 2 and min(noise) > 0.01, printed

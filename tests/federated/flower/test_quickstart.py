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

import pytest
from tests.federated.flower.test_deployment import told_of, wait_until
from tests.federated.processes import LOOPBACK, listening

from shadow_defense.experiment.audit.of_run import case_of_run
from shadow_defense.federated.flower.environment import SILENT
from shadow_defense.files import read_json

QUICKSTART = Path(__file__).resolve().parents[3] / "examples" / "flower-quickstart"

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


def test_the_quickstart_trains_and_records_what_an_audit_needs(home: Path, tmp_path: Path) -> None:
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
    }
    run = tmp_path / "run"
    command = ["flwr", "run", str(QUICKSTART), "--stream", "--run-config", f'run-dir="{run}"']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert listening(told_of(home)) <= LOOPBACK
    assert read_json(run / "arms" / "shadow" / "history.json")["rounds_done"] == 2, done.stdout
    case = case_of_run(run, arm=None, round=None, client=None, attacks=(), threat_model=None, iterations=2)
    assert case.name == "client-1 in round 1 of shadow"

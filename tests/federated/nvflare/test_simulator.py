"""The example in NVFlare's simulator: what the server saw, what a failing defense lets out, and what is left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federated.processes import LOOPBACK, listening, told
from torch import Tensor

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from shadow_defense.experiment.audit.case import Given
from shadow_defense.experiment.audit.of_model import case_of_update
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.nvflare.site_state import STATE_FOLDER
from shadow_defense.federated.states import digest
from shadow_defense.federated.training_folder import round_folder
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import flatten_tensors, read_tensors

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "nvflare"
SITES = {"site-1": 1, "site-2": 2, "site-3": 2}
"""The sites of the example, with their steps in a round."""


pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


class Machine:
    """A run of the example with a home and a folder for temporary files of its own, and what it does meanwhile.

    NVFlare's sockets lie in the second, whose path must be short for that.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.home, self.run, self.states = (folder / name for name in ("home", "run", "sites"))
        self.temporary = temporary
        self.home.mkdir()
        self.listened, self.output = set[str](), ""

    def start(self, *options: str) -> int:
        """The exit code of ``python job.py``."""
        environment = {**os.environ, "HOME": str(self.home), "TMPDIR": str(self.temporary)}
        environment |= {STATE_FOLDER: str(self.states), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "job.py", str(self.run), *options]
        with (self.run.parent / "output.txt").open("w+") as output:
            job = subprocess.Popen(
                command, cwd=EXAMPLE, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            while job.poll() is None:
                self.listened |= listening(self.processes())
                time.sleep(0.5)
            output.seek(0)
            self.output = output.read()
        return job.returncode

    def processes(self) -> list[Path]:
        """All that the run started, whoever's child it is by now."""
        return told(f"TMPDIR={self.temporary}")

    def seen(self, round: int) -> Path:
        return round_folder(self.run / "seen", round)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="n-") as temporary:
        made = Machine(tmp_path, Path(temporary))
        yield made
        for place in made.processes():
            with contextlib.suppress(OSError):
                os.kill(int(place.name), 9)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's training script as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    described = importlib.util.spec_from_file_location("example_client", EXAMPLE / "client.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def without_the_smallest(tensor: Tensor, percent: float) -> np.ndarray[Any, Any]:
    values = tensor.numpy()
    return values * (np.abs(values) >= np.percentile(np.abs(values).astype(np.float64), percent))


def no_traces(machine: Machine) -> None:
    deadline = time.monotonic() + 30
    while machine.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert machine.processes() == []
    assert list(machine.home.rglob("*")) == []
    # torch makes an empty folder for what it might compile.
    assert [path for path in machine.temporary.rglob("*") if not path.name.startswith("torchinductor_")] == []
    assert machine.listened and machine.listened <= LOOPBACK


def test_the_example_protects_and_records(
    machine: Machine, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three sites that take turns in one place: each is a new process in every round. Of two places on a busy machine
    # NVFlare may give both to one site.
    code = machine.start("--update-defense", "gradient-sparsification", "--threads", "1")
    assert code == 0, machine.output
    no_traces(machine)
    globals_ = [read_tensors(machine.seen(round) / "global.safetensors")[0] for round in (0, 1)]
    final = machine.run / "nvflare" / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"
    globals_.append(torch.load(final, weights_only=True)["model"])
    # The same sites in one process that never ends: what a round begins with must not depend on it.
    again = tmp_path / "again"
    monkeypatch.setenv(STATE_FOLDER, str(again))
    shutil.copytree(machine.states / "secrets", again / "secrets")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sent: list[Any] = []
    monkeypatch.setattr(client.flare, "send", sent.append)
    for round in (0, 1):
        updates = {}
        for name, steps in SITES.items():
            update = ModelUpdate.load(machine.seen(round) / f"update-{name}.safetensors")
            images = len(client.images_of(name)[0])
            assert (update.steps, update.samples, update.round, update.client) == (steps, images, round, name)
            arrays = {tensor: value.numpy() for tensor, value in globals_[round].items()}
            asked = [client.flare.FLModel(params=arrays, current_round=round, total_rounds=2), None]
            monkeypatch.setattr(client.flare, "get_site_name", lambda name=name: name)
            monkeypatch.setattr(client.flare, "receive", lambda asked=asked: asked.pop(0))
            client.defended("faces", machine.run / "generator" / "generator.safetensors", None)
            for tensor, value in sent.pop().params.items():
                expected = without_the_smallest(torch.as_tensor(value), 80)
                assert np.array_equal(update.tensors[tensor].numpy(), expected), (name, tensor)
            updates[name] = update.tensors
        for tensor, before in globals_[round].items():
            mean = sum(SITES[name] * each[tensor].double() for name, each in updates.items()) / sum(SITES.values())
            torch.testing.assert_close(globals_[round + 1][tensor].double(), before + mean, rtol=1e-5, atol=1e-7)
            assert not torch.equal(globals_[round + 1][tensor], before)
    torch.set_num_threads(threads)
    for name in SITES:
        there, here = (ClientStateFolder(states, "faces", name).last() for states in (machine.states, again))
        assert there is not None and here is not None and there.round == here.round == 1
        assert digest(flatten_tensors(there.defense)) == digest(flatten_tensors(here.defense))
    place = machine.seen(0)
    given = Given(
        str(EXAMPLE / "faces.yaml"), update=place / "update-site-1.safetensors", before=place / "global.safetensors"
    )
    assert case_of_update(given) is not None


@pytest.mark.parametrize(
    ("state", "code"),
    # Of the filter; of ShadowGuard, in the training script.
    [("site-2-filter", "TASK_RESULT_FILTER_ERROR"), ("site-2", "TASK_ABORTED|EXECUTION_EXCEPTION")],
)
def test_where_a_defense_fails_nothing_leaves(machine: Machine, state: str, code: str) -> None:
    # The defense finds no place for what it has to remember.
    (machine.states / "faces").mkdir(parents=True)
    (machine.states / "faces" / state).write_text("in the way\n")
    options = ["--update-defense", "local-dp", "--no-shadow"] if state.endswith("filter") else []
    assert machine.start(*options) != 0, "a round without one of its sites ends the job"
    no_traces(machine)
    assert (machine.seen(0) / "global.safetensors").exists() and not machine.seen(1).exists()
    assert not list(machine.run.rglob("*update-site-2*"))
    log = "".join(path.read_text() for path in (machine.run / "nvflare" / "server").rglob("*log*.txt"))
    assert re.search(f"site-2 answered ({code})", log), "the server is told the code"
    assert "FileExistsError" not in log and str(machine.states) not in log, "and nothing else"

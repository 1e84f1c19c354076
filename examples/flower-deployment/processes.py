"""A SuperLink and its SuperNodes on the loopback interface, with TLS and node authentication, from start to stop."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from certificates import LOOPBACK, write_node_keys, write_server_certificate

# Importing it switches off all that Flower would tell others, for this process and those that it starts.
import shadow_defense.federated.flower  # noqa: F401

CONNECTION = "loopback"
PATIENCE = 120.0
"""Seconds that a process may take to start, on a busy machine."""

LEAVE = 15.0
"""Seconds that a process may take to stop before it is killed."""

STOPPED_BY = (signal.SIGINT, signal.SIGTERM)


class Deployment:
    """``with Deployment(folder, nodes) as deployment: deployment.run(app, ...)``; afterwards nothing is left running.

    Args:
        folder: for certificates, keys, logs and Flower's own files.
        nodes: the ``--node-config`` of each SuperNode.
    """

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        self.folder, self.node_configs = folder, tuple(nodes)
        self.address = f"{LOOPBACK}:{free_port()}"
        self.superlink: subprocess.Popen[bytes] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        # Flower starts its own programs by name: those of this environment.
        programs = Path(sys.executable).parent
        self.environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
            "FLWR_HOME": str(folder / "flower"),
        }

    def __enter__(self) -> Deployment:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        for name in ("flower", "logs", "certificates", *(f"keys-{n}" for n in range(len(self.node_configs)))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_server_certificate(self.certificates)
        (self.folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.certificates / "ca.pem"}"\n',
            encoding="utf-8",
        )
        host, port = self.address.split(":")
        with signals_later():
            self.superlink = self._launch(
                "superlink",
                *("flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth"),
                *("--ssl-ca-certfile", str(self.certificates / "ca.pem")),
                *("--ssl-certfile", str(self.certificates / "server.pem")),
                *("--ssl-keyfile", str(self.certificates / "server.key")),
                "--disable-runtime-dependency-installation",
            )
        self._wait_until_healthy()
        for number in range(len(self.node_configs)):
            keys = self.folder / f"keys-{number}"
            write_node_keys(keys)
            # The one step that somebody at the server takes for each hospital: its public key is let in.
            self._flwr("supernode", "register", str(keys / "node.pub"), CONNECTION)
            self.start_node(number)

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def start_node(self, number: int) -> None:
        """Start a SuperNode; one that was killed can come back once SuperLink has missed it, after 60 seconds."""
        if number in self.nodes:
            # What an earlier process left behind: a client that trains on does not hear at once that it is alone.
            stop_all([self.nodes.pop(number)])
        with signals_later():
            self.nodes[number] = self._launch(
                f"node-{number}",
                *("flower-supernode", "--superlink", self.address, "--host", LOOPBACK, "--port", str(free_port())),
                *("--root-certificates", str(self.certificates / "ca.pem")),
                *("--auth-supernode-private-key", str(self.folder / f"keys-{number}" / "node.key")),
                *("--node-config", self.node_configs[number]),
            )

    def run(self, app: Path, **settings: str | int | float) -> str:
        """Submit a Flower app, wait for its end, and give the server's log; ``round_timeout=60`` sets round-timeout."""
        given = " ".join(f"{name.replace('_', '-')}={_toml(value)}" for name, value in settings.items())
        return self._flwr("run", str(app), CONNECTION, "--stream", *(("--run-config", given) if given else ()))

    def stop(self) -> None:
        """Stop every process that was started, hospitals first, and what they started themselves."""
        stop_all(list(self.nodes.values()))
        stop_all([] if self.superlink is None else [self.superlink])
        self.nodes, self.superlink = {}, None

    def _launch(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C is for this process, which stops the others in order.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(f"flwr {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _wait_until_healthy(self) -> None:
        assert self.superlink is not None
        trusted, until = (
            ssl.create_default_context(cafile=str(self.certificates / "ca.pem")),
            time.monotonic() + PATIENCE,
        )
        while time.monotonic() < until and self.superlink.poll() is None:
            with (
                suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"https://{self.address}/health", timeout=5, context=trusted),
            ):
                return
            time.sleep(0.3)
        raise RuntimeError(f"SuperLink did not start: see {self.folder / 'logs' / 'superlink.log'}")


@contextmanager
def signals_later() -> Iterator[None]:
    """Ctrl-C and `kill` wait for the end of the block: a process that is just being started would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPPED_BY}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def stop_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask each process and its children to leave, and kill what has not left after 15 seconds, by their group's id."""
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    until = time.monotonic() + LEAVE
    while time.monotonic() < until and any(_lives(process) for process in processes):
        time.sleep(0.1)
    for process in processes:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group has its first process's number, since that began a session.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])


def _toml(value: str | int | float) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)

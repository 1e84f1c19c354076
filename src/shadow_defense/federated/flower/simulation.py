"""Flower's simulation engine (Ray) for many clients on this machine: no telemetry, loopback only, no leftovers."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from shadow_defense.errors import RunError


def check_simulation() -> None:
    """Raise :class:`RunError` where Ray, which the simulation runs on, is not installed."""
    if find_spec("ray") is None:
        raise RunError(
            "Flower's simulation needs Ray: install the extra with `pip install 'shadow-defense[flower]'`, or take "
            "another engine"
        )


def simulate(server_app: ServerApp, client_app: ClientApp, *, clients: int, at_once: int) -> None:
    """Run both apps with ``clients`` simulated nodes, ``at_once`` of them in parallel processes.

    Raises:
        Whatever the ServerApp raises.
    """
    check_simulation()
    with _own_folder() as folder, warnings.catch_warnings():
        # Ray's hint to accelerators' users.
        warnings.simplefilter("ignore", FutureWarning)
        # Here, since it imports Ray.
        from flwr.simulation import run_simulation

        run_simulation(
            server_app,
            client_app,
            num_supernodes=clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": at_once,
                    "include_dashboard": False,
                    "log_to_driver": False,
                    "logging_level": "ERROR",
                    "_temp_dir": str(folder / "ray"),
                },
            },
        )


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A short temporary folder (Ray's sockets lie in it) that is Flower's home too, and a silent log."""
    folder = Path(tempfile.mkdtemp(prefix="flower-"))
    home = os.environ.get("FLWR_HOME")
    os.environ["FLWR_HOME"] = str(folder / "home")
    logger = logging.getLogger("flwr")
    level = logger.level
    # Its warnings are of interfaces that will change, not of the training.
    logger.setLevel(logging.ERROR)
    try:
        yield folder
    finally:
        logger.setLevel(level)
        if home is None:
            del os.environ["FLWR_HOME"]
        else:
            os.environ["FLWR_HOME"] = home
        shutil.rmtree(folder, ignore_errors=True)

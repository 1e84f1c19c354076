"""Three hospitals with Shadow Defense on Flower, as deployed, on this machine: TLS, node authentication, an audit.

Run it with: .venv/bin/python examples/flower-deployment/deploy.py
Everything listens on 127.0.0.1 only, and is stopped at the end, on Ctrl-C and on failure.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import yaml
from processes import Deployment

from shadow_defense.config import config_from
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.training import pretrain_stage, rounds_done

HERE = Path(__file__).resolve().parent
RUN, ARM = "hospitals", "shadow"


def prepare(folder: Path) -> tuple[Run, list[str]]:
    """The server's run directory, and one for each hospital; the ``--node-config`` of each hospital's SuperNode.

    Here all have the same images and each takes its own share of them; a real hospital's config.yaml names its own.
    """
    config = config_from(yaml.safe_load((HERE / "federation.yaml").read_text(encoding="utf-8")))
    server = Run.create(folder / "server" / RUN, config)
    # From public images: nothing private is in it, and all hospitals may have the same.
    pretrain_stage(server)
    nodes = []
    for number in range(len(server.dataset.clients)):
        hospital = folder / f"hospital-{number + 1}"
        site = Run.create(hospital / RUN, config)
        site.generator_path.parent.mkdir(exist_ok=True)
        shutil.copyfile(server.generator_path, site.generator_path)
        nodes.append(f'partition-id={number} run-dir="{site.folder}" state-dir="{hospital / "state"}"')
    return server, nodes


def interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("flower-deployment"), help="folder for all that is written")
    folder = parser.parse_args().out.resolve()
    # Both, since a shell lets what it starts in the background ignore Ctrl-C, and `kill` would end this process only.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    server, nodes = prepare(folder)
    started = time.perf_counter()
    with Deployment(folder / "flower", nodes) as deployment:
        print(f"SuperLink on {deployment.address} and {len(nodes)} SuperNodes: {time.perf_counter() - started:.0f} s")
        log = deployment.run(HERE / "app", run_dir=str(server.folder))
    print(f"{rounds_done(server, ARM)} rounds: {time.perf_counter() - started:.0f} s; all processes stopped")
    if rounds_done(server, ARM) < server.config.training.rounds:
        print(f"{log}\nthe training stopped: the reason is above, and in {folder / 'flower' / 'logs'}", file=sys.stderr)
        return 1
    audit = ["audit", str(server.folder), "--arm", ARM, "--out", str(folder / "audit")]
    return subprocess.run([sys.executable, "-m", "shadow_defense.cli", *audit]).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: all processes are stopped")

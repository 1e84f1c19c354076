"""Three hospitals on Flower, as deployed, on this machine: TLS, node authentication, and audits of what the server saw.

Undefended first, then with Shadow Defense: the audits say what one image gives away, what hides eight, what the defense
does. With --secure the server gets averages by SecAgg+, and they are what is audited.

Run it with: .venv/bin/python examples/flower-deployment/deploy.py
Everything listens on 127.0.0.1 only, and is stopped at the end, on Ctrl-C and on failure.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import yaml
from processes import Deployment

from shadow_defense.config import config_from
from shadow_defense.experiment.audit.of_run import case_of_run
from shadow_defense.experiment.audit.running import PAGE, run_audit
from shadow_defense.experiment.plans.run import pretrain_stage
from shadow_defense.experiment.run import Run
from shadow_defense.federated.training_folder import read_journal
from shadow_defense.federated.update import ALL_CLIENTS

HERE = Path(__file__).resolve().parent
RUN = "hospitals"
AUDITS = {
    "one-image-undefended": ("none", "client-1"),
    "eight-images-undefended": ("none", "client-3"),
    "one-image-defended": ("shadow", "client-1"),
}
"""The updates of the first round that are audited at the end: the folder below ``audit``, the arm and the client."""

AUDITS_OF_AVERAGES = {"average-undefended": ("none", ALL_CLIENTS), "average-defended": ("shadow", ALL_CLIENTS)}


def prepare(folder: Path, secure: bool) -> tuple[Run, list[str]]:
    """The server's run directory, and one for each hospital; the ``--node-config`` of each hospital's SuperNode.

    Here all have the same images and each takes its own share of them; a real hospital's config.yaml names its own.
    """
    values = yaml.safe_load((HERE / "federation.yaml").read_text(encoding="utf-8"))
    config = config_from({**values, "engine": "flower-secure-aggregation"} if secure else values)
    server = Run.create(folder / "server" / RUN, config)
    # From public images: nothing private is in it, and all hospitals may have the same.
    pretrain_stage(server)
    nodes = []
    for number in range(len(server.dataset.clients)):
        hospital = folder / f"hospital-{number + 1}"
        site = Run.create(hospital / RUN, config)
        if config.needs_generator:
            site.generator_path.parent.mkdir(exist_ok=True)
            shutil.copyfile(server.generator_path, site.generator_path)
        # A hospital of its own would name the defended arm only: this one shows what happens without.
        arms = " ".join(config.arms)
        where = f'run-dir="{site.folder}" state-dir="{hospital / "state"}"'
        nodes.append(f'partition-id={number} arms="{arms}" {where}' + (" secure=true" if secure else ""))
    return server, nodes


def interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("flower-deployment"), help="folder for all that is written")
    parser.add_argument("--secure", action="store_true", help="updates leave masked: SecAgg+ tells the server averages")
    given = parser.parse_args()
    folder = given.out.resolve()
    # Both, since a shell lets what it starts in the background ignore Ctrl-C, and `kill` would end this process only.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    server, nodes = prepare(folder, given.secure)
    started = time.perf_counter()
    with Deployment(folder / "flower", nodes) as deployment:
        print(f"SuperLink on {deployment.address} and {len(nodes)} SuperNodes: {time.perf_counter() - started:.0f} s")
        for arm in server.config.arms:
            log = deployment.run(HERE / "app", run_dir=str(server.folder), arm=arm)
            print(
                f"{read_journal(server.arm_folder(arm))[0]} rounds of arm {arm}: {time.perf_counter() - started:.0f} s"
            )
            if read_journal(server.arm_folder(arm))[0] < server.config.training.rounds:
                where = folder / "flower" / "logs"
                print(f"{log}\nthe training stopped: the reason is above, and in {where}", file=sys.stderr)
                return 1
    print("all processes stopped")
    for name, (arm, client) in (AUDITS_OF_AVERAGES if given.secure else AUDITS).items():
        if arm not in server.config.arms:
            continue
        out = folder / "audit" / name
        command = f"shadow-defense audit {server.folder} --arm {arm} --client {client} --out {out}"
        asked = {"round": None, "attacks": (), "threat_model": None, "iterations": None}
        record = run_audit(out, case_of_run(server.folder, arm=arm, client=client, **asked), command=command)
        print(f"{name}, {record.assessment.status}: {record.assessment.headline} See {out / PAGE}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: all processes are stopped")

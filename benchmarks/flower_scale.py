"""What a round costs on Flower's simulation with few and with many clients, all of them or some in each round.

    .venv/bin/python benchmarks/flower_scale.py --clients 100 1000 --per-round 10 100

One image of 16 pixels each, a small convnet, two client processes: the work around the training shows. Each line is a
process of its own. Seconds are the median of the rounds after the first, which starts the engine; processor seconds are
of the driver, Flower's and Ray's processes and the clients' together, and are what to look at on a busy machine. Memory
is the highest seen in samples of /proc (Linux): resident of the driver, and resident and proportional of one process of
clients. The disk is what one client's state takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from shadow_defense.config import config_from
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.plans.run import pretrain_stage
from shadow_defense.experiment.run import Run
from shadow_defense.progress import Progress, Task

TICKS = os.sysconf("SC_CLK_TCK")
DEFENSES = {
    "none": {"defense": "none"},
    "shadow": {"defense": "shadow", "options": {"latent_iterations": 5, "attack_iterations": 1}},
}


class Watch:
    """Processor time and memory of this process and all below it, sampled; those that ended are counted too."""

    def __init__(self) -> None:
        self.processor: dict[int, float] = {}
        self.driver = self.resident = self.proportional = 0
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        """Processor seconds so far."""
        self._sample(memory=False)
        return sum(self.processor.values())

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            self._sample(memory=True)

    def _sample(self, *, memory: bool) -> None:
        processes = {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                # After the name, which may hold anything: state, parent, ...
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                processes[int(place.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS)
        for number in processes:
            above = number
            while above in processes and above != os.getpid():
                above = processes[above][0]
            if above == os.getpid():
                self.processor[number] = processes[number][1]
                if memory:
                    self._weigh(number)

    def _weigh(self, number: int) -> None:
        with suppress(OSError, IndexError):
            place = Path("/proc", str(number))
            resident = int(re.findall(r"VmRSS:\s+(\d+)", (place / "status").read_text())[0])
            if number == os.getpid():
                self.driver = max(self.driver, resident)
            elif b"ClientAppActor" in (place / "cmdline").read_bytes():
                self.resident = max(self.resident, resident)
                found = re.findall(r"Pss:\s+(\d+)", (place / "smaps_rollup").read_text())
                self.proportional = max(self.proportional, int(found[0]))


class Clock(Progress):
    """Notes wall and processor time at the end of every round."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.rounds = watch, list[tuple[float, float]]()

    def start(self, name: str, total: int) -> Task:
        clock = self

        class Noting(Task):
            def advance(self, steps: int = 1, note: str = "") -> None:
                if steps:
                    clock.note()

        return Noting()

    def note(self) -> None:
        self.rounds.append((time.perf_counter(), self.watch.seconds()))


def measure(clients: int, per_round: int, defense: str, rounds: int) -> dict[str, float]:
    """One training; called in a process of its own."""
    public = 16
    settings = {
        "data": {
            "source": "chest_phantom",
            "images": int((clients + public) / 0.9) + 32,
            "image_size": 16,
            "public_fraction": public / (clients + public),
            "validation_fraction": 0.05,
            "test_fraction": 0.05,
            "split": {"kind": "sizes", "sizes": [1] * clients, "batch_sizes": [1] * clients},
        },
        "model": {"name": "convnet", "width": 8, "activation": "gelu"},
        "generator": {"z_dim": 8, "width": 4, "steps": 2, "save_every": 2},
        "training": {"rounds": rounds, "clients_per_round": per_round, "evaluate_every": rounds},
        "arms": {"arm": DEFENSES[defense]},
        "attacks": {},
        "metrics": {"lpips": None},
        "workers": 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder, "run"), config_from(settings))
        pretrain_stage(run)
        watch = Watch()
        clock = Clock(watch)
        clock.note()
        place = run.place("arm")
        place.write()
        engine_named("flower-simulation").train_arm(place, clock)
        watch.stop()
        steps = [
            (after[0] - before[0], after[1] - before[1])
            for before, after in zip(clock.rounds, clock.rounds[1:], strict=False)
        ]
        states = [path for path in (run.arm_folder("arm") / "clients").rglob("*") if path.is_file()]
        homes = {path.parent for path in states}
        return {
            "first": steps[0][0],
            "wall": statistics.median(step[0] for step in steps[1:]),
            "processor": statistics.median(step[1] for step in steps[1:]),
            "driver": watch.driver / 1024,
            "resident": watch.resident / 1024,
            "proportional": watch.proportional / 1024,
            "disk": sum(path.stat().st_size for path in states) / 1024 / max(len(homes), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--per-round", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--defense", nargs="+", choices=DEFENSES, default=list(DEFENSES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--one", action="store_true", help="print the numbers of the first of each as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.clients[0], given.per_round[0], given.defense[0], given.rounds)))
        return
    print(f"{'defense':8}{'clients':>8}{'a round':>8}{'s':>8}{'CPU s':>8}{'a client':>10}{'first s':>9}", end="")
    print(f"{'driver MB':>11}{'actor MB':>10}{'PSS MB':>8}{'KB/client':>11}")
    for defense in given.defense:
        for clients in given.clients:
            for per_round in (number for number in given.per_round if number <= clients):
                command = [sys.executable, __file__, "--one", "--rounds", str(given.rounds)]
                command += ["--clients", str(clients), "--per-round", str(per_round), "--defense", defense]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                print(f"{defense:8}{clients:8}{per_round:8}{found['wall']:8.1f}{found['processor']:8.1f}", end="")
                print(f"{1000 * found['processor'] / per_round:7.0f} ms{found['first']:9.1f}", end="")
                print(f"{found['driver']:11.0f}{found['resident']:10.0f}{found['proportional']:8.0f}", end="")
                print(f"{found['disk']:11.1f}", flush=True)


if __name__ == "__main__":
    main()

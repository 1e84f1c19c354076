"""Kills at random moments of ``run``, ``compare`` and ``calibrate``, begun again until they end: not a bit differs.

    python benchmarks/kills.py --kills 100

Each command runs once unbroken. Then it is begun again and again, and each time killed (SIGKILL, with its workers)
after a random share of the unbroken one's time, until it ends by itself; its files must be those of the unbroken one,
but for what tells times and dates, and nothing half written may be left. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from shadow_defense.files import read_tensors
from shadow_defense.seeds import seed_for

RUN: dict[str, Any] = {
    "data": {"source": "faces", "image_size": 16, "split": {"kind": "sizes", "sizes": [1, 1, 6]}},
    "model": {"name": "convnet", "width": 8},
    "generator": {"z_dim": 8, "width": 4, "steps": 6, "batch_size": 4, "save_every": 2},
    "training": {"rounds": 3, "learning_rate": 0.05},
    "arms": {
        "fedavg": {"defense": "none"},
        "shadow": {"defense": "shadow", "options": {"latent_iterations": 3, "strength": 1.0}},
    },
    "attacks": {"ig": {"attack": "inverting-gradients", "options": {"iterations": 8}, "longest_client": 1}},
    "metrics": {"lpips": None},
    "workers": 2,
}
GRID: dict[str, Any] = {
    **{key: RUN[key] for key in ("data", "generator", "training", "metrics", "workers")},
    "seeds": [0],
    "models": {"convnet": {"model": RUN["model"]}},
    "defenses": {"fedavg": {"defense": "none"}, "noise": {"defense": "noise", "preset": "weak"}},
    "attacks": {"inverting-gradients": {"options": {"iterations": 8}, "longest_client": 1, "rounds": [1]}},
}
COMMANDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "run": (RUN, ()),
    "compare": (GRID, ()),
    "calibrate": (RUN, ("--target", "ssim=0.5", "--tolerance", "1", "--seeds", "0", "--schedules", "constant")),
}
"""What each command is given: a file, and options."""

VOLATILE = ("second", "created", "duration", "peak", "memory", "cost", "time", "versions", "milliseconds")
"""Parts of the names of what differs between two runs of the same numbers: clocks and the machine's memory."""

UNCOMPARED = ("*.html", "*.csv", "*.md", "*.png", "*.lock", "cost.json")
"""Made anew from the numbers, with times among them; or measured by the clock."""


@dataclass(frozen=True)
class Broken:
    """A command that was killed until it ended.

    Attributes:
        differing: files that are not those of the unbroken one.
        left: what was left half written.
    """

    command: str
    kills: int
    differing: tuple[str, ...]
    left: tuple[str, ...]


def _steady(value: Any) -> Any:
    """The value without what tells times."""
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if not any(part in key.lower() for part in VOLATILE)}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_steady(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        return {name: (str(each.dtype), each.numpy().tobytes()) for name, each in tensors.items()}, _steady(metadata)
    return path.read_bytes()


def differing(unbroken: Path, broken: Path) -> tuple[str, ...]:
    """The files that one of the two folders lacks, or that hold another value."""

    def files(folder: Path) -> dict[str, Path]:
        return {
            str(path.relative_to(folder)): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(path.match(each) for each in (*UNCOMPARED, "*.partial*"))
        }

    before, after = files(unbroken), files(broken)
    return tuple(
        name
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or _content(before[name]) != _content(after[name])
    )


def _begin(command: str, folder: Path) -> subprocess.Popen[bytes]:
    settings, options = COMMANDS[command]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    arguments = [sys.executable, "-m", "shadow_defense.cli", command, "settings.yaml", "--out", "out", "--quiet"]
    return subprocess.Popen(
        [*arguments, *options], cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{process.args} ended with {process.returncode}: {errors.decode(errors='replace')[-2000:]}")


def broken(
    command: str, unbroken: Path, folder: Path, seconds: float, random: np.random.Generator, most: int
) -> Broken:
    """Kill a command at random moments, at most so often, until it ends; then compare."""
    kills = 0
    while True:
        process = _begin(command, folder)
        if kills == most:
            _finish(process)
            break
        try:
            process.wait(timeout=random.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            _finish(process)
            break
    left = tuple(str(path.relative_to(folder)) for path in folder.rglob("*.partial*"))
    return Broken(command, kills, differing(unbroken / "out", folder / "out"), left)


def campaign(commands: list[str], kills: int, seed: int) -> list[Broken]:
    """So many kills, dealt to the commands; each is begun anew in another folder once it has ended."""
    ended = []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        for number, command in enumerate(commands):
            share = kills // len(commands) + (number < kills % len(commands))
            random = np.random.default_rng(seed_for(seed, "kills", command))
            unbroken, started = Path(name) / command / "unbroken", time.monotonic()
            _finish(_begin(command, unbroken))
            seconds = time.monotonic() - started
            while share > 0:
                folder = Path(name) / command / f"broken-{len(ended)}"
                ended.append(broken(command, unbroken, folder, seconds, random, share))
                share -= ended[-1].kills
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=list(COMMANDS), help="default all")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    ended = campaign(chosen.command or list(COMMANDS), chosen.kills, chosen.seed)
    if chosen.json:
        print(json.dumps([asdict(each) for each in ended], indent=1))
    else:
        for command in COMMANDS:
            those = [each for each in ended if each.command == command]
            kills, wrong = sum(each.kills for each in those), sum(bool(each.differing or each.left) for each in those)
            print(f"{command}: {kills} kills in {len(those)} that ended, {wrong} of them not as unbroken")
        for each in ended:
            for name in each.differing + each.left:
                print(f"    {each.command} after {each.kills} kills: {name}")
    sys.exit(1 if any(each.differing or each.left for each in ended) else 0)


if __name__ == "__main__":
    main()

"""Mutated inputs of every kind that the project reads: each ends fine or in one line that says what to correct.

    python benchmarks/fuzz.py --seed 1 --count 10000
    python benchmarks/fuzz.py --seed 1 --kind npz --only 17

A fault is anything else: a traceback, a dead or hanging process, more than 8 s of processor time or 2 GiB, a program
started, a file written or left where none should be, a refusal of more than one line, 600 characters, or with control
characters. Exit code 1 where there is one. An input is remade alone from the seed, its kind and its number. Linux only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzzing.kind import Kind
from fuzzing.kinds import KINDS
from fuzzing.outcome import Outcome
from fuzzing.worker import Task, Worker


@dataclass(frozen=True)
class Finding:
    """An input that did not end as it should."""

    task: Task
    what: str
    outcome: Outcome

    @property
    def group(self) -> tuple[str, str, str]:
        return self.task.kind, self.outcome.fault, self.outcome.place

    @property
    def command(self) -> str:
        return f"python benchmarks/fuzz.py --seed {self.task.seed} --kind {self.task.kind} --only {self.task.number}"


@dataclass(frozen=True)
class Campaign:
    """What came of many inputs.

    Attributes:
        counts: inputs by kind and verdict.
        slowest: seconds of the wall clock, by kind.
    """

    counts: dict[str, Counter[str]]
    slowest: dict[str, float]
    findings: tuple[Finding, ...]

    def grouped(self) -> list[list[Finding]]:
        """The findings of one kind, fault and place together, the most frequent first."""
        groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            groups[finding.group].append(finding)
        return sorted(groups.values(), key=len, reverse=True)


def tasks(seed: int, count: int, names: list[str], only: int | None = None) -> list[Task]:
    """The kinds in turn; the number of an input belongs to its kind, so that any can be remade alone."""
    if only is not None:
        return [Task(name, seed, only) for name in names]
    return [Task(names[index % len(names)], seed, index // len(names)) for index in range(count)]


def campaign(todo: list[Task], kinds: dict[str, Kind], verbose: bool = False) -> Campaign:
    """Give every input to the project in a bounded worker."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    slowest: dict[str, float] = defaultdict(float)
    findings = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        scratch, begun = Path(folder) / "worker", Path(folder) / "begun"
        scratch.mkdir()
        for name, kind in kinds.items():
            (begun / name).mkdir(parents=True)
            for module in kind.modules:
                importlib.import_module(module)
            kind.prepare(begun / name)
        worker = Worker(kinds, scratch)
        for task in todo:
            started = time.monotonic()
            what, outcome = worker.run(task)
            slowest[task.kind] = max(slowest[task.kind], time.monotonic() - started)
            counts[task.kind][outcome.verdict] += 1
            if outcome.verdict == "fault":
                findings.append(Finding(task, what, outcome))
                print(f"fault: {findings[-1].command}", file=sys.stderr, flush=True)
            if verbose:
                print(f"{task.kind} {task.number}: {what}: {outcome}".encode("ascii", "backslashreplace").decode())
        worker.close()
    return Campaign(counts, dict(slowest), tuple(findings))


def lines(result: Campaign) -> list[str]:
    """A table of the kinds, then the faults with the command that remakes one of each."""
    told = [f"{'kind':<16} {'fine':>6} {'refused':>8} {'faults':>7} {'slowest':>8}"]
    for name, count in result.counts.items():
        slowest = result.slowest.get(name, 0)
        told.append(f"{name:<16} {count['fine']:>6} {count['refused']:>8} {count['fault']:>7} {slowest:>6.1f} s")
    for group in result.grouped():
        first = group[0]
        told += [
            f"{len(group)} x {first.task.kind}: {first.outcome.fault} at {first.outcome.place}",
            f"    {first.what}: {first.outcome.text}".encode("ascii", "backslashreplace").decode()[:400],
            f"    {first.command}",
        ]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="inputs of all kinds together")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="default all; may be given repeatedly")
    parser.add_argument("--only", type=int, help="one input of each kind, by its number, with its outcome in full")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    names = chosen.kind or list(KINDS)
    result = campaign(
        tasks(chosen.seed, chosen.count, names, chosen.only),
        {name: KINDS[name] for name in names},
        verbose=chosen.only is not None and not chosen.json,
    )
    if chosen.json:
        told = {
            "seed": chosen.seed,
            "counts": result.counts,
            "slowest_seconds": result.slowest,
            "faults": [
                {"command": each.command, "what": each.what, **asdict(each.outcome)} for each in result.findings
            ],
        }
        print(json.dumps(told, indent=1))
    else:
        print("\n".join(lines(result)))
    sys.exit(1 if result.findings else 0)


if __name__ == "__main__":
    main()

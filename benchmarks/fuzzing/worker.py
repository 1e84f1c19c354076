"""A worker process that takes inputs one after the other, within bounds of time, memory and deeds."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from fuzzing.kind import Kind
from fuzzing.outcome import Outcome, judge, place_in_dump
from fuzzing.watching import Watch
from shadow_defense.seeds import seed_for

PROCESSOR_SECONDS = 8
"""For one input; above it the worker is ended."""
IDLE_SECONDS = 8
"""Without any processor time in so long, the worker waits for something that does not come."""
MEMORY_GIB = 2
"""Resident memory that one input may add."""
HEADROOM_GIB = 4
"""Address space above what the worker begins with: an input that asks for more fails to get it."""
LIFE = 400
"""Inputs of one worker, so that none is judged on what many before it left behind."""

YARD = "yard"


@dataclass(frozen=True)
class Task:
    """One input: of the kind's name, remade alone from the seed and its number."""

    kind: str
    seed: int
    number: int


class Worker:
    """Gives inputs to a forked process, which is replaced when it dies.

    Args:
        kinds: by name, prepared already: the process inherits what is imported.
        scratch: an empty folder; every input gets one below it.
    """

    def __init__(self, kinds: dict[str, Kind], scratch: Path) -> None:
        self.kinds, self.scratch = kinds, scratch
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._given = 0

    def run(self, task: Task) -> tuple[str, Outcome]:
        """What the input is, in words, and how it ended."""
        if self._process is None or self._given >= LIFE:
            self._start()
        assert self._pipe is not None and self._process is not None
        self._given += 1
        try:
            self._pipe.send(task)
            used = -1
            while not self._pipe.poll(IDLE_SECONDS):
                before, used = used, _ticks(self._process.pid)
                if used == before:
                    os.kill(self._process.pid or 0, signal.SIGALRM)
            return self._pipe.recv()
        except (EOFError, OSError):
            return self._died(self._process)

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join()
            self._process = None

    def _start(self) -> None:
        self.close()
        # What a process that died was at.
        if (self.scratch / YARD).exists():
            shutil.rmtree(self.scratch / YARD, onerror=_make_removable)
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._pipe, self.kinds, self.scratch), daemon=True)
        self._process.start()
        other.close()
        self._given = 0

    def _died(self, process: multiprocessing.process.BaseProcess) -> tuple[str, Outcome]:
        process.join()
        what = (self.scratch / "what").read_text("utf-8", "replace")
        place = place_in_dump((self.scratch / "dump").read_text("utf-8", "replace"))
        self._process = None
        reasons = {
            -signal.SIGPROF: f"more than {PROCESSOR_SECONDS} s of processor time",
            -signal.SIGALRM: "hang",
            -signal.SIGKILL: "killed, likely for memory",
        }
        code = process.exitcode or 0
        return what, Outcome("fault", reasons.get(code, f"the process died ({code})"), place)


def _serve(pipe: Connection, parents: Connection, kinds: dict[str, Kind], scratch: Path) -> None:
    parents.close()
    dump = (scratch / "dump").open("w")
    silent = (scratch / "printed").open("w")
    os.dup2(silent.fileno(), 1)
    os.dup2(silent.fileno(), 2)
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    faulthandler.enable(dump)
    for number in (signal.SIGPROF, signal.SIGALRM):
        # The default action ends the process, whatever a library's own code is doing.
        signal.signal(number, signal.SIG_DFL)
        faulthandler.register(number, dump, all_threads=True, chain=True)
    most = _kilobytes("VmSize") * 1024 + HEADROOM_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    watch = Watch()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        dump.seek(0)
        dump.truncate()
        pipe.send(_one(task, kinds[task.kind], scratch, watch))


def _one(task: Task, kind: Kind, scratch: Path, watch: Watch) -> tuple[str, Outcome]:
    (scratch / "what").write_text(f"{task.kind} {task.number}, while it was made")
    yard = scratch / YARD
    room = yard / "room"
    room.mkdir(parents=True)
    random = np.random.default_rng(seed_for(task.seed, "fuzz", task.kind, task.number))
    tempfile.tempdir = str(room)
    os.chdir(room)
    try:
        try:
            made = kind.make(random, room)
        except Exception:
            place = traceback.format_exc(limit=-1).splitlines()
            return f"{task.kind} {task.number}", Outcome("fault", "the fuzzer itself", place[1].strip(), place[-1])
        (scratch / "what").write_text(made.what, "utf-8", "replace")
        before = _kilobytes("VmRSS")
        _forget_peak()
        watch.begin(room)
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
        try:
            outcome = judge(made.give)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            acts = watch.end()
        outcome = _judge_deeds(outcome, acts, (_kilobytes("VmHWM") - before) / 2**20, room)
        return made.what, outcome
    finally:
        os.chdir(scratch)
        shutil.rmtree(yard, onerror=_make_removable)


def _judge_deeds(outcome: Outcome, acts: list[str], gibibytes: float, room: Path) -> Outcome:
    stray = [path.name for path in room.parent.iterdir() if path != room]
    left = [path for path in room.rglob("*.partial*") if not path.is_symlink()]
    if acts:
        return Outcome("fault", acts[0].split()[0], outcome.place, acts[0])
    if stray:
        return Outcome("fault", "file outside the folder", outcome.place, f"{stray[0]!a}")
    if gibibytes > MEMORY_GIB:
        return Outcome("fault", f"more than {MEMORY_GIB} GiB", outcome.place, f"{gibibytes:.1f} GiB; {outcome.text}")
    if left:
        return Outcome("fault", "temporary file left", outcome.place, f"{left[0].name!a}")
    return outcome


def _kilobytes(field: str) -> int:
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def _ticks(process: int | None) -> int:
    """Of the processor, that a process has used; 0 where it is no more."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def _forget_peak() -> None:
    # Linux: the highest resident size begins anew.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _make_removable(function: object, name: str, error: object) -> None:
    path = Path(name)
    path.parent.chmod(0o700)
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()

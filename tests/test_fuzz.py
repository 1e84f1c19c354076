"""A slice of the fuzzer in a process of its own, and the faults that its judge must see."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shadow_defense.errors import DataError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

SLICE = (
    "image",
    "dicom",
    "npz",
    "manifest",
    "folder",
    "configuration",
    "comparison",
    "override",
    "tensors",
    "generator",
)


@pytest.fixture(scope="module")
def parts() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("fuzzing")


@pytest.mark.slow
def test_a_slice_of_the_campaign_ends_without_a_fault() -> None:
    kinds = [part for kind in SLICE for part in ("--kind", kind)]
    script = [sys.executable, str(BENCHMARKS / "fuzz.py"), "--seed", "5", "--count", "100", "--json", *kinds]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=550)
    told = json.loads(ended.stdout)
    assert told["faults"] == [] and ended.returncode == 0
    # What is refused at the door tells little: some of each kind get through.
    assert sum(count.get("fine", 0) for count in told["counts"].values()) > 5


def test_an_input_is_remade_alone_from_seed_kind_and_number(parts: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    make = importlib.import_module("fuzzing.arrays").make
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder in (first, again, other):
        folder.mkdir()
    told = [make(np.random.default_rng(seed), folder).what for seed, folder in ((3, first), (3, again), (4, other))]
    assert told[0] == told[1] != told[2]
    assert (first / "set.npz").stat().st_size == (again / "set.npz").stat().st_size


def faults(parts: ModuleType, give: Any, tmp_path: Path) -> str:
    """The fault that the worker finds in a call; "" where there is none."""
    kind, worker = importlib.import_module("fuzzing.kind"), importlib.import_module("fuzzing.worker")
    tried = worker.Worker({"planted": kind.Kind(lambda random, folder: kind.Input("planted", give))}, tmp_path)
    try:
        return tried.run(worker.Task("planted", 0, 0))[1].fault
    finally:
        tried.close()


def refuse(message: str) -> None:
    error = DataError()
    error.args = (message,)
    raise error


def divide() -> None:
    _ = 1 / 0


def spin() -> None:
    while True:
        pass


def wait() -> None:
    os.mkfifo("pipe")
    Path("pipe").read_bytes()


def starve() -> None:
    try:
        bytearray(10**12)
    except MemoryError as error:
        raise DataError("too large") from error


PLANTED = {
    "ZeroDivisionError": divide,
    "subprocess.Popen": lambda: subprocess.run(["true"]),
    "open": lambda: Path("../beside").write_text("x"),
    "os.mkdir": lambda: Path("../../beside").mkdir(),
    "temporary file left": lambda: Path("a.partial").touch(),
    "more than 2 GiB": lambda: len(bytearray(b"\1") * (5 * 2**29)),
    "memory asked for before it was refused": starve,
    "refusal with control characters": lambda: refuse("a\x1b[2Jb"),
    "refusal above 600 characters": lambda: refuse("x" * 601),
    "refusal without a word": lambda: refuse(" "),
    "the process died (-9)": lambda: os._exit(-9),
    "": lambda: refuse("one line"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_seen(parts: ModuleType, fault: str, tmp_path: Path) -> None:
    seen = faults(parts, PLANTED[fault], tmp_path)
    assert seen == fault or (fault.startswith("the process died") and seen.startswith("the process died"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "call", "fault"),
    [("PROCESSOR_SECONDS", spin, "more than 1 s of processor time"), ("IDLE_SECONDS", wait, "hang")],
)
def test_a_call_that_spins_or_waits_is_ended(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, call: Callable[[], None], fault: str
) -> None:
    monkeypatch.setattr(importlib.import_module("fuzzing.worker"), limit, 1)
    assert faults(parts, call, tmp_path) == fault

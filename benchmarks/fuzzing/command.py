"""A command of the command line in this process: what it prints is judged as what a terminal would show."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import unicodedata
from pathlib import Path

from fuzzing.outcome import RefusedError

SHOWN = frozenset("\n")


def command(*arguments: str | Path) -> None:
    """Run ``shadow-defense ARGUMENTS``. Exit codes other than 0, 1 of a limit and 2 are faults.

    Raises:
        RefusedError: with the last line on standard error, after exit code 2.
    """
    from shadow_defense.cli.app import run_app

    # A mode of the terminal's own encoding would be another thing to fail; bytes that are none stay visible.
    printed, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
    given, sys.argv = sys.argv, ["shadow-defense", *map(str, arguments)]
    code: object = 0
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            try:
                run_app()
            except SystemExit as ended:
                code = ended.code
    finally:
        sys.argv = given
        signal.signal(signal.SIGTERM, before)
    out, refused = _text(printed), _text(errors)
    assert not _controls(out), f"control characters on the terminal: {_controls(out)!a}"
    if code == 2:
        line = refused.rstrip("\n").removeprefix("shadow-defense: ")
        # What typer says of a flag stands below its usage.
        raise RefusedError(line.split("\n")[-1] if line.startswith("Usage:") else line)
    assert code in (0, 1, None), f"exit code {code}"


def _text(written: io.TextIOWrapper) -> str:
    written.flush()
    assert isinstance(written.buffer, io.BytesIO)
    return written.buffer.getvalue().decode("utf-8")


def _controls(text: str) -> str:
    return "".join(sorted({sign for sign in text if unicodedata.category(sign) == "Cc"} - SHOWN))

"""What several commands print when they are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from shadow_defense.errors import shown


def interval_cell(value: Mapping[str, Any] | None, form: str) -> str:
    """A mean ± half its 95 % interval; a hyphen for what was not measured.

    >>> interval_cell({"mean": 2.0, "interval": [1.5, 2.5]}, ".1f"), interval_cell(None, ".1f")
    ('2.0 ± 0.5', '-')
    """
    if value is None:
        return "-"
    interval = value["interval"]
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:{form}}"
    return f"{value['mean']:{form}}{half}"


LINE_LIMIT = 2000
"""Characters of a printed line, which may hold what came out of data."""


def print_line(console: Console, line: str) -> None:
    """Print a line that may hold brackets, which are no markup, and names out of data, which may hold anything."""
    console.print(shown(line, LINE_LIMIT), highlight=False, markup=False)


def print_sentences(console: Console, sentences: Iterable[str]) -> None:
    """Print them a line each, as :func:`print_line`."""
    for sentence in sentences:
        print_line(console, f"  {sentence}")


def print_page(console: Console, page: Path) -> None:
    """Print the last line of a command that wrote a page: its address, whole on one line to be clicked."""
    console.print(f"\nOpen {page.resolve().as_uri()}", highlight=False, soft_wrap=True)

"""What several commands print when they are done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from shadow_defense.errors import shown

LINE_LIMIT = 2000
"""Characters of a printed line, which may hold what came out of data."""


def print_line(console: Console, line: str) -> None:
    """Print a line that may hold brackets, which are no markup, and names out of data, which may hold anything."""
    # Spaces that hold a number and its interval together on a page are no character to escape.
    console.print(shown(line.replace("\N{NO-BREAK SPACE}", " "), LINE_LIMIT), highlight=False, markup=False)


def print_sentences(console: Console, sentences: Iterable[str]) -> None:
    """Print them a line each, as :func:`print_line`."""
    for sentence in sentences:
        print_line(console, f"  {sentence}")


def print_page(console: Console, page: Path) -> None:
    """Print the last line of a command that wrote a page: its address, whole on one line to be clicked."""
    console.print(f"\nOpen {page.resolve().as_uri()}", highlight=False, soft_wrap=True)

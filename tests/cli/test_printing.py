"""What a command prints when it is done can be read."""

from __future__ import annotations

import io

from rich.console import Console

from shadow_defense.cli.printing import print_sentences


def test_an_interval_is_printed_as_it_is_read() -> None:
    text = io.StringIO()
    print_sentences(
        Console(file=text, width=200), ["within 20.71\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.27 dB", "a\x1b[2Jb"]
    )
    assert text.getvalue() == "  within 20.71 ± 0.27 dB\n  a\\x1b[2Jb\n"

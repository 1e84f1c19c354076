"""Messages made of what files hold: one line, no control characters, never long."""

from __future__ import annotations

import pickle

from shadow_defense.errors import DataError, shown


def test_control_and_direction_characters_are_escaped() -> None:
    assert shown("a\x1b[31m\r\n\x00\x9b\u202e\udcff é 'x'") == r"a\x1b[31m\r\n\x00\x9b\u202e\udcff é 'x'"


def test_long_text_is_cut_before_and_after_escaping() -> None:
    assert shown("x" * 120) == "x" * 120
    assert shown("x" * 10**7) == "x" * 119 + "…"
    assert len(shown("\x00" * 120)) == 120


def test_an_error_is_one_line_and_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError("b\x1b[2J\n" + "y" * 5000)))
    assert str(error).startswith(r"b\x1b[2J\ny") and len(str(error)) == 600 and type(error) is DataError

"""YAML gives plain values, or one line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from shadow_defense.errors import ConfigError
from shadow_defense.plain_yaml import parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def test_plain_values_are_as_pyyaml_reads_them() -> None:
    text = "a: 1\nb: [1.5, -2e-3, true, null, 'x']\nc: {d: é, e: 0x10}\nf: &f {g: 1, h: 2}\ni: {<<: *f, h: 3}\n"
    assert parse_yaml(text, "it") == yaml.safe_load(text)
    assert parse_yaml("", "it") is None
    # A date is a text here: no setting is one.
    assert parse_yaml("a: 2020-01-31\nb: 2020-99-99", "it") == {"a": "2020-01-31", "b": "2020-99-99"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: !!int x", "invalid literal"),
        ("a: !!timestamp 2020-99-99", "timestamp is not known"),
        ("a: !!python/object/apply:os.system [ls]", "os.system is not known"),
        ("a: !!binary YQ==", "binary is not known"),
        ("a: !!set {x}", "set is not known"),
        ("a: " + "1" * 5000, "5000 characters"),
        ("a: 1.0e+" + "9" * 4999, "5004 characters"),
        ("[" * 60_000, "deeper than 30"),
        ("- " * 5000, "deeper than 30"),
        (BOMB, "unfolds to more than 20000"),
        ("a: &a [*a]", "holds itself"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice"),
        ("a: .nan", "no finite number"),
        ("a: -.inf", "no finite number"),
        ("a: !!float nan", "no finite number|could not convert"),
        ("? [a]\n: b", "unhashable"),
        ("a: b: c", "mapping values"),
        ("a: \x1b[2J", "not allowed"),
        ("x" * 300_000, "300000 characters"),
        ("a: *b", "undefined alias"),
        ('a: "\\uD800"', "half of a character"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
)
def test_everything_else_is_one_line_at_once(text: str, wanted: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=wanted) as raised:
        parse_yaml(text, "given.yaml")
    assert "given.yaml is not valid YAML" in str(raised.value) and "\n" not in str(raised.value)
    assert time.process_time() - started < 5


def test_the_longest_text_is_read_in_seconds() -> None:
    text = "".join(f"k{i}: [1, 2, 3]\n" for i in range(3000))
    started = time.process_time()
    assert len(parse_yaml(text, "it")) == 3000
    assert time.process_time() - started < 8


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "big.yaml").write_text("x" * 300_000)
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / ("x" * 5000), tmp_path / "a\0b"):
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            read_yaml(path)

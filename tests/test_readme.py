"""What the README and the documentation tell to type is what the commands take; what they link to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from shadow_defense.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `shadow-defense` that stands on a line of its own."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines = re.findall(r"^ +(?:\$ )?(?:\.venv/bin/)?shadow-defense (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def parsed(arguments: list[str]) -> None:
    command, given = typer.main.get_command(app), list(arguments)
    while isinstance(command, click.Group):
        command = command.commands[given.pop(0)]
    context = click.Context(command)
    command.make_parser(context).parse_args(given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_there_is(page: Path) -> None:
    for arguments in commands(page):
        try:
            parsed(arguments)
        except (KeyError, click.UsageError) as error:
            pytest.fail(f"shadow-defense {shlex.join(arguments)}: {error}")


def test_a_flag_that_there_is_not_is_seen() -> None:
    assert len(commands(ROOT / "README.md")) > 10
    with pytest.raises(click.NoSuchOption):
        parsed(["run", "demo", "--sett", "seed=1"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_has_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []

"""What the README and the documentation tell to type is what the commands take; what they link to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
from torch import nn

from shadow_defense.cli.app import app
from shadow_defense.generators.build import build_networks, save_generator
from shadow_defense.generators.settings import GeneratorSettings

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


def snippet(importing: str) -> str:
    """The README's one block of Python that imports a name."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [found] = [block for block in blocks if importing in block]
    return found


@pytest.mark.slow
def test_the_guards_snippet_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GeneratorSettings(name="dcgan", width=4, z_dim=8)
    generator = build_networks(settings, image_size=16, channels=1, seed=0)[0]
    save_generator(tmp_path / "generator" / "generator.safetensors", generator, "dcgan", {})
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(256, 2))
    clean = torch.zeros(1, 1, 16, 16)
    names: dict[str, Any] = {
        "MEAN": (0.5,),
        "STD": (0.5,),
        "R": 2,
        "r": 0,
        "loader": [(clean, torch.tensor([1]), torch.tensor([7]))],
        "local_model": model,
        "global_model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "loss_fn": nn.CrossEntropyLoss(),
    }
    exec(snippet("load_generator"), names)
    assert names["images"].shape == clean.shape and not torch.equal(names["images"], clean)


def test_flowers_three_lines_are_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    clientapp = pytest.importorskip("flwr.clientapp")
    names: dict[str, Any] = {"app": clientapp.ClientApp(), "MEAN": (0.5,), "STD": (0.5,)}
    exec(snippet("ShadowGuardMod, guarded"), names)
    assert names["app"]._registered_funcs


def test_what_it_imports_from_the_package_itself_is_there() -> None:
    import shadow_defense

    named = re.findall(r"shadow_defense\.([a-z_]+)\(", (ROOT / "README.md").read_text())
    assert set(named) <= set(shadow_defense.__all__)
    assert all(getattr(shadow_defense, name) is not None for name in shadow_defense.__all__)

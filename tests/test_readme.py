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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `shadow-defense` that stands on a line of its own."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines = re.findall(r"^ +(?:\$ )?(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?shadow-defense (.+)$", text, re.MULTILINE)
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


PRINTED = [*PAGES, *sorted((ROOT / "docs" / "results").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]

RUN_BY = {
    "flwr run .": "tests/federated/flower/test_quickstart.py",
    "python examples/flower-deployment/deploy.py": "tests/federated/flower/test_deployment.py",
    "shadow-defense audit --model": "tests/experiment/test_audit.py",
    "shadow-defense audit --model package.module": "tests/experiment/test_audit_own_model.py",
    "shadow-defense audit ~/shadow-defense-quickstart": "tests/federated/flower/test_quickstart.py",
    "shadow-defense audit --protected": "tests/experiment/protecting/test_folder_audit.py",
    "shadow-defense calibrate CONFIG --analytic": "tests/experiment/protecting/test_calibrating.py",
    "shadow-defense compare MY-GRID.yaml": "tests/experiment/test_comparison_whole.py",
    "shadow-defense compare kermany": "tests/experiment/test_comparison_grid.py",
    "shadow-defense compare signs.yaml": "tests/test_examples.py",
    "shadow-defense config": "tests/cli/test_cli.py",
    "shadow-defense data list": "tests/cli/test_cli.py",
    "shadow-defense evidence study.yaml": "tests/experiment/test_evidence.py",
    "shadow-defense evidence --data HOSPITALS": "tests/experiment/test_evidence.py",
    "shadow-defense import-snapshot": "tests/cli/test_cli.py",
    "shadow-defense pretrain --generator dcgan": "tests/experiment/test_pretraining.py",
    "shadow-defense pretrain --generator stylegan3-t ": "tests/generators/test_stylegan3_training.py",
    "shadow-defense run secure-aggregation": "tests/federated/flower/secure_aggregation/test_secure_run.py",
}
"""By how a command of the pages begins: the test that runs it, in small or on names of its own."""


PRINTED_COMMAND = r"^ {4,}((?:shadow-defense|python|flwr|flower-\w+) .+)$"


def undated(page: Path) -> list[str]:
    """The commands of a page whose section says no day; nor does the page, but the README, before its first section."""
    sections = re.split(r"^(?=##+ )", re.sub(r"\\\n\s*", "", page.read_text()), flags=re.MULTILINE)
    if page != ROOT / "README.md" and re.search(DAY, sections[0]):
        return []
    return [
        command
        for section in sections
        if not re.search(DAY, section)
        for command in re.findall(PRINTED_COMMAND, section, re.MULTILINE)
    ]


DAY = r"\b20\d\d-\d\d-\d\d\b"


@pytest.mark.parametrize("page", PRINTED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_runs_in_a_test_or_says_when_it_was_last_run(page: Path) -> None:
    assert [command for command in undated(page) if not command.startswith(tuple(RUN_BY))] == []


def test_what_runs_a_command_is_there() -> None:
    printed = [command for page in PRINTED for command in re.findall(PRINTED_COMMAND, page.read_text(), re.MULTILINE)]
    assert [begins for begins in RUN_BY if not any(command.startswith(begins) for command in printed)] == []
    assert [test for test in RUN_BY.values() if not (ROOT / test).exists()] == []


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
    names: dict[str, Any] = {"ClientApp": clientapp.ClientApp, "MEAN": (0.5,), "STD": (0.5,)}
    exec(snippet("ShadowGuardMod, guarded"), names)
    assert names["app"]._registered_funcs


def test_what_it_imports_from_the_package_itself_is_there() -> None:
    import shadow_defense

    named = re.findall(r"shadow_defense\.([a-z_]+)\(", (ROOT / "README.md").read_text())
    assert set(named) <= set(shadow_defense.__all__)
    assert all(getattr(shadow_defense, name) is not None for name in shadow_defense.__all__)

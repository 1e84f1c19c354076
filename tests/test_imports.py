"""Which way imports go."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "shadow_defense"
ROAD = ("data", "models", "generators", "shadow", "protection", "defenses", "federated", "metrics", "attacks")


def imported(path: Path) -> set[str]:
    """The rooms that a module imports from, anywhere in it."""
    nodes = ast.walk(ast.parse(path.read_text()))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {
        parts[1] for parts in (module.split(".") for module in modules) if parts[0] == "shadow_defense" and parts[1:]
    }


@pytest.mark.parametrize("room", ROAD)
def test_no_room_imports_what_is_further_down_the_road(room: str) -> None:
    later = {*ROAD[ROAD.index(room) + 1 :], "report", "experiment", "config", "schema", "cli"}
    found = {str(path.relative_to(SOURCE)): imported(path) & later for path in (SOURCE / room).rglob("*.py")}
    assert {path: rooms for path, rooms in found.items() if rooms} == {}


def test_models_are_called_with_other_tensors_by_the_one_function_that_knows_shared_modules() -> None:
    """torch's own leaves a substitute in a model whose module has two names (pytorch issue 164759)."""
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "torch.func" and "functional_call" in ast.dump(node))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.func.functional_call")
    }
    assert found == set()


@pytest.mark.parametrize("room", ["attacks", "metrics"])
def test_what_measures_a_defense_does_not_import_it(room: str) -> None:
    found = [str(path.relative_to(SOURCE)) for path in (SOURCE / room).rglob("*.py") if "shadow" in imported(path)]
    assert found == []


def test_pages_know_nothing_of_the_stages_that_fill_them() -> None:
    later = {"experiment", "config", "schema", "cli"}
    found = {str(path.relative_to(SOURCE)): imported(path) & later for path in (SOURCE / "report").rglob("*.py")}
    assert {path: rooms for path, rooms in found.items() if rooms} == {}

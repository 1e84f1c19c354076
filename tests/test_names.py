"""Every name that a function reads exists: the shape strings of jaxtyping keep the linters from seeing it."""

from __future__ import annotations

import builtins
import dis
import importlib
import pkgutil
from collections.abc import Iterator
from types import CodeType, ModuleType

import pytest

import shadow_defense

MODULES = [
    module.name
    for module in pkgutil.walk_packages(shadow_defense.__path__, "shadow_defense.")
    if not module.name.endswith("__main__")
]


def code_of(module: ModuleType) -> CodeType:
    assert module.__spec__ is not None and module.__spec__.loader is not None
    found = module.__spec__.loader.get_code(module.__name__)  # type: ignore[attr-defined]
    assert isinstance(found, CodeType)
    return found


def global_names(code: CodeType) -> Iterator[str]:
    """The names that the functions of a module look up in it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


@pytest.mark.parametrize("name", MODULES)
def test_every_global_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    known = vars(module).keys() | vars(builtins).keys()
    assert {found for found in global_names(code_of(module)) if found not in known} == set()


def test_a_missing_name_is_seen() -> None:
    code = compile("def f():\n    return missing_name(1)\n", "planted", "exec")
    assert list(global_names(code)) == ["missing_name"]

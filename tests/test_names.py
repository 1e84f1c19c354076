"""Every name that a function reads exists: the shape strings of jaxtyping keep the linters from seeing it."""

from __future__ import annotations

import builtins
import dis
import importlib
import pkgutil
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType

import shadow_defense

MODULES = [
    module.name
    for module in pkgutil.walk_packages(shadow_defense.__path__, "shadow_defense.")
    if not module.name.endswith("__main__")
]


def code_of(module: ModuleType) -> CodeType:
    # By Python's own loader: the one that checks shapes would leave its code where users' processes look for theirs.
    found = SourceFileLoader(module.__name__, str(module.__file__)).get_code(module.__name__)
    assert found is not None
    return found


def global_names(code: CodeType) -> Iterator[str]:
    """The names that the functions of a module look up in it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


def test_every_global_name_exists() -> None:
    missing = {
        f"{module.__name__}: {found}"
        for module in map(importlib.import_module, MODULES)
        for found in global_names(code_of(module))
        if not hasattr(module, found) and not hasattr(builtins, found)
    }
    assert missing == set()


def test_a_missing_name_is_seen() -> None:
    code = compile("def f():\n    return missing_name(1)\n", "planted", "exec")
    assert list(global_names(code)) == ["missing_name"]

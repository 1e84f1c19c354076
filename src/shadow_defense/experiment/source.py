"""The source that computes a result: what its modules reach by their imports, without comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from shadow_defense import _HOMES

OWN = __name__.partition(".")[0]
ROOMS = (
    *("attacks", "data", "defenses", "devices", "federated", "generators", "metrics", "models", "placement"),
    *("protection", "seeds", "shadow", "threads"),
    *("experiment.engines", "experiment.flower_apps", "experiment.handed_over", "experiment.images"),
    *("experiment.provenance", "experiment.scene", "experiment.tasks"),
)
"""Where in this package code lies that decides numbers. All of another package's does."""

SAID_BY_KEYS = frozenset(
    (
        *("data.build", "data.sources", "experiment.tasks.checking", "experiment.tasks.keys"),
        *("attacks.adaptive.attack", "attacks.registry"),
        *("defenses.registry", "generators.registry", "models.naming", "models.registry"),
    )
)
"""Not among them: which images were read and what was chosen by name stand in each key itself."""

INSTALLED = frozenset(Path(place) for place in sysconfig.get_paths().values())
"""Folders whose modules lie beside each other without belonging together."""


@cache
def code_hash(*roots: str) -> str:
    """Of the source of modules and of all that :func:`reached` finds from them: another hash, perhaps other numbers.

    Comments and docstrings do not count, nor do modules that are imported for types alone; what is imported within a
    function does.

    Args:
        roots: modules by name. A registry imports what was chosen by name, which no import shows: it is a root too.

    >>> mean, mixed = "shadow_defense.metrics.psnr", "shadow_defense.metrics.ssim"
    >>> code_hash(mean) == code_hash(mean) != code_hash(mean, mixed)
    True
    """
    digest = hashlib.sha256()
    for name in sorted(reached(*roots)):
        digest.update(f"{name} {_read(name)[0]}".encode())
    return digest.hexdigest()[:20]


@cache
def reached(*roots: str) -> frozenset[str]:
    """``roots`` and, at whatever depth, what decides numbers among the modules that they import.

    Those of this package, of their own, and of files beside a module that is a file alone.
    """
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += (each for each in _read(name)[1] if _decides(each))
    return frozenset(found)


def _decides(module: str) -> bool:
    package, _, inside = module.partition(".")
    if package != OWN:
        return True
    return inside not in SAID_BY_KEYS and any(inside == room or inside.startswith(f"{room}.") for room in ROOMS)


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """A module's code as text, and the modules of its own package and of this one that its import runs.

    Empty where it has no source, as a compiled one.
    """
    path = _file(module)
    if path is None or path.suffix != ".py":
        return "", frozenset()
    home = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
        named = {name for node in _run(tree) for name in _named(node, home) if _is_near(name, module)}
        for node in ast.walk(tree):
            _drop_docstring(node)
        text = ast.dump(tree)
    # A file of another package that nothing imports, or whose expressions are hundreds deep.
    except (SyntaxError, RecursionError):
        return path.read_bytes().hex(), frozenset()
    if module.partition(".")[0] != OWN:
        # The packages that it lies in run before it. Those of this package do nothing.
        named.add(module.rpartition(".")[0])
    # What this package gives by its own name is imported on first use.
    named = {_HOMES.get(name.removeprefix(f"{OWN}."), name) for name in named}
    return text, frozenset(name for name in named if name != module and _file(name) is not None)


def _is_near(name: str, module: str) -> bool:
    """Whether an import of ``module`` is of this package, of its own, or of a file beside it that is not installed."""
    package, own = name.partition(".")[0], module.partition(".")[0]
    if package in (OWN, own):
        return True
    place, beside = _top(package), _top(own)
    return place is not None and beside is not None and place.parent == beside.parent and place.parent not in INSTALLED


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for each in child.orelse:
                yield from _run(each)
        else:
            yield from _run(child)


def _named(node: ast.AST, home: str) -> list[str]:
    """What an import may name: ``from a import b`` the module ``a``, and ``a.b`` where that is one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = home.split(".")[: len(home.split(".")) + 1 - node.level] if node.level else []
    place = ".".join([*above, *([node.module] if node.module else [])])
    return [place, *(f"{place}.{alias.name}" for alias in node.names)]


def _drop_docstring(node: ast.AST) -> None:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        # A string that stands alone, also after a constant, says something and does nothing.
        node.body = [each for each in node.body if not _stands_alone(each)]


def _stands_alone(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file(module: str) -> Path | None:
    """Where a module's source lies; None where it has none, or is none. Nothing is imported."""
    package, *inside = module.split(".")
    top = _top(package)
    if top is None or (top.is_file() and inside):
        return None
    place = top.joinpath(*inside)
    return next((path for path in (place / "__init__.py", place.with_suffix(".py"), place) if path.is_file()), None)


@cache
def _top(package: str) -> Path | None:
    """The folder of a package, or the file of a module that is one alone."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]) if folders else Path(spec.origin) if spec.origin else None

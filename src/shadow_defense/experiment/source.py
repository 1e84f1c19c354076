"""The source that computes a result: what its modules reach by their imports, without comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

OWN = __name__.partition(".")[0]
ROOMS = (
    *("attacks", "data", "defenses", "devices", "federated", "generators", "metrics", "models", "placement"),
    *("protection", "seeds", "shadow", "threads"),
    *("experiment.engines", "experiment.flower_apps", "experiment.handed_over", "experiment.images"),
    *("experiment.scene", "experiment.tasks"),
)
"""Where in this package code lies that decides numbers. All of another package's does."""

SAID_BY_KEYS = frozenset(
    (
        *("data.build", "data.sources", "experiment.tasks.checking", "experiment.tasks.keys"),
        *("attacks.registry", "defenses.registry", "generators.registry", "models.naming", "models.registry"),
    )
)
"""Not among them: what pixels were read and what was chosen by name stand in each key itself."""


@cache
def code_hash(*roots: str) -> str:
    """Of the source of modules and of what they import, at whatever depth: another hash, perhaps other numbers.

    What is imported for types alone, comments and docstrings do not count; what is imported within a function does.

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
    """The modules that decide numbers among ``roots`` and all that they import, of their own packages and of this."""
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
    try:
        tree = ast.parse(path.read_bytes())
    # A file of another package that nothing imports.
    except SyntaxError:
        return path.read_bytes().hex(), frozenset()
    home = module if path.name == "__init__.py" else module.rpartition(".")[0]
    package = module.partition(".")[0]
    named = {name for node in _run(tree) for name in _named(node, home) if name.partition(".")[0] in (package, OWN)}
    if package != OWN:
        # The packages that it lies in run before it. Those of this package do nothing.
        named |= {module.rpartition(".")[0]}
    for node in ast.walk(tree):
        _drop_docstring(node)
    return ast.dump(tree), frozenset(name for name in named if name != module and _file(name) is not None)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
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
    spec = _spec(package)
    if spec is None or not inside:
        return spec
    if spec.name != "__init__.py":
        return None
    place = spec.parent.joinpath(*inside)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def _spec(package: str) -> Path | None:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)

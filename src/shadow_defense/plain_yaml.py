"""YAML as configurations need it: texts, numbers, lists and keys, whatever is in the file."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from shadow_defense.errors import ConfigError
from shadow_defense.files import read_text

TEXT_BYTES = 64 * 1024
"""Of the largest text read, in about two seconds; presets have a twentieth of it."""

DEEPEST = 30
"""Levels of nesting; configurations have seven."""

MOST_VALUES = 20_000
"""Keys and values, each counted as often as an alias repeats it."""

LONGEST_NUMBER = 100
"""Characters of a number; Python takes quadratic time for long ones."""

PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer types: a date is a text, and a key given twice is a mistake."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the class above declares it
        first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # What is merged (`<<: *base`) may be overridden; what stands here twice may not.
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"the key '{key.value}' is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, origin: str) -> Any:
    """The plain value of a YAML text.

    Limits come first: length, nesting, and the size that aliases unfold to.

    Raises:
        ConfigError: one line with ``origin``, for what is not YAML, other types than plain ones, keys given twice, NaN
            and infinity, and what is beyond the limits.
    """
    try:
        if len(text) > TEXT_BYTES:
            raise ValueError(f"it has {len(text)} characters and at most {TEXT_BYTES} are read")
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_node(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except Exception as error:  # PyYAML's constructors let through what Python's own raise
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> Any:
    """The plain value of a YAML file. Raises :class:`ConfigError` as :func:`parse_yaml`, and where it is unreadable."""
    try:
        text = read_text(path, TEXT_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}; give a YAML file") from error
    return parse_yaml(text, str(path))


def _check_node(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values below a node, aliases unfolded; raises ``ValueError`` for what is not plain."""
    known = sizes.get(id(node))
    if known is not None:
        if known == 0:
            raise ValueError("an alias holds itself")
        return known
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.CollectionNode):
        _check_tag(node)
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                size += _check_node(part, sizes)
                if size > MOST_VALUES:
                    raise ValueError(f"it unfolds to more than {MOST_VALUES} values")
    sizes[id(node)] = size
    return size


def _check_tag(node: yaml.Node) -> None:
    if node.tag not in PLAIN_TAGS:
        raise ValueError(f"the tag {node.tag} is not known: write plain texts, numbers, lists and keys")


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag == "tag:yaml.org,2002:merge":
        return
    _check_tag(node)
    name = node.tag.rpartition(":")[2]
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ValueError("it holds half of a character (\\ud800 to \\udfff)")
    if name in ("int", "float") and len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(node.value)} characters: expected at most {LONGEST_NUMBER}")
    if name == "float" and not math.isfinite(yaml.SafeLoader("").construct_yaml_float(node)):
        raise ValueError(f"'{node.value}' is no finite number")


def as_mapping(value: Any, origin: str) -> dict[str, Any]:
    """``value`` where it is keys and values; else raises :class:`ConfigError`, as for an empty file."""
    if not isinstance(value, Mapping):
        held = "nothing" if value is None else f"a {type(value).__name__}"
        raise ConfigError(f"{origin} holds {held}: expected keys and values")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{origin} has the key {key!r}, which is no text: write it in quotes")
    return dict(value)

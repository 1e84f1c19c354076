"""Changes to bytes, values and trees of values: what valid input becomes."""

from __future__ import annotations

import copy
import datetime
import struct
from collections.abc import Callable, MutableMapping, MutableSequence
from typing import Any

import numpy as np

from fuzzing.kind import pick

NUMBERS = (
    0, -1, 1, 2, 3, 7, 255, 256, 1000, 65535, 65536, 10**6, 2**31 - 1, -(2**31), 2**31, 10**9, 2**63 - 1, 2**63, 10**11,
    10**30, 0.5, -0.5, 1e-320, 1e38, 1e308, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip

TEXTS = (
    "", " ", "0", "-1", "1e9", "nan", "None", "null", "true", "\x00", "a\x00b", "\x1b[2J\x1b[1;1H", "two\nlines",
    "tab\t", "\r", "\x9b31m", "x/../../../escaped", "..", ".", "/", "/etc/passwd", "~", "~nobody/x", "-", "--out",
    "é", "e\u0301", "\u202eabc", "\ud7ff", "🩻", "٣", "²", "a" * 300, "b" * 5000, "9" * 5000, "[bold red]x[/]",
    "<script>alert(1)</script>", "{{7*7}}", "%s%n", "$HOME", "`id`", "CON", "a|b", "=1+1", "file:///etc/passwd",
    "a" * 70000, "\ufeff", "\u2028",
)  # fmt: skip


def deep_list(depth: int) -> list[Any]:
    """Lists in lists."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def odd_value(random: np.random.Generator) -> Any:
    """A value that stands rarely where another was expected."""
    others: tuple[Any, ...] = (
        None, True, False, [], {}, [[]], [None], {"a": 1}, [1, "a"], {"": {}}, list(range(50)), deep_list(20),
        datetime.date(2026, 1, 1), [float("nan")], ["x"] * 3,
    )  # fmt: skip
    return copy.deepcopy(pick(random, pick(random, (NUMBERS, NUMBERS, TEXTS, TEXTS, others))))


def change_bytes(random: np.random.Generator, content: bytes, most: int = 3) -> tuple[bytes, str]:
    """One to ``most`` changes of bytes anywhere, and what they were."""
    changed, done = bytearray(content), []
    for _ in range(int(random.integers(1, most + 1))):
        size = len(changed)
        place, length = (int(random.integers(size)) if size else 0), int(random.integers(1, 65))
        how = pick(random, ("flip", "flip", "cut", "insert", "repeat", "zero", "number", "number", "remove"))
        done.append(f"{how} at {place}")
        if how == "flip" and size:
            changed[place] ^= 1 << int(random.integers(8))
        elif how == "cut":
            del changed[place:]
        elif how == "insert":
            changed[place:place] = random.bytes(length)
        elif how == "repeat":
            changed[place:place] = changed[place : place + length] * int(random.integers(1, 50))
        elif how == "zero":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif how == "number":
            form = pick(random, ("<H", ">H", "<I", ">I", "<Q", ">Q"))
            most_value = 256 ** struct.calcsize(form) - 1
            packed = struct.pack(form, pick(random, (0, 1, most_value // 2, most_value, 10**4, min(10**8, most_value))))
            changed[place : place + len(packed)] = packed
        else:
            del changed[place : place + length]
    return bytes(changed), ", ".join(done)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += _places(value, (*path, key))
    return found


def change_tree(
    random: np.random.Generator, tree: Any, most: int = 2, odd: Callable[[np.random.Generator], Any] = odd_value
) -> tuple[Any, str]:
    """One to ``most`` changes of a tree of dicts, lists and values: replaced, removed, renamed, repeated, wrapped."""
    tree, done = copy.deepcopy(tree), []
    for _ in range(int(random.integers(1, most + 1))):
        places = _places(tree)
        path = pick(random, places[1:] or places)
        where = ".".join(map(str, path))[:80] or "all"
        how = pick(random, ("replace", "replace", "replace", "remove", "rename", "repeat", "wrap", "add"))
        if not path or (how == "replace" and random.random() < 0.01):
            tree = odd(random)
            done.append("the whole replaced")
            continue
        place = tree
        for key in path[:-1]:
            place = place[key]
        key = path[-1]
        value = place[key]
        if how == "remove":
            del place[key]
        elif how == "rename" and isinstance(place, MutableMapping):
            place[pick(random, TEXTS)] = place.pop(key)
        elif how == "repeat" and isinstance(place, MutableSequence):
            place[key:key] = [copy.deepcopy(value)] * int(random.integers(1, 40))
        elif how == "wrap":
            place[key] = pick(random, ([value], {"a": value}, str(value)))
        elif how == "add" and isinstance(value, dict):
            value[pick(random, TEXTS)] = odd(random)
        else:
            how, place[key] = "replace", odd(random)
            where += f" = {place[key]!r}"[:60]
        done.append(f"{how} {where}")
    return tree, ", ".join(done)

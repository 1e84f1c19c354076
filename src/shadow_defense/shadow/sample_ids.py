"""Names of samples, in whatever type a loader gives them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from shadow_defense.errors import DataError


def sample_keys(sample_ids: Any) -> tuple[str, ...]:
    """One string an id: what codes, maps and random draws are kept and named by.

    Strings, whole numbers and paths, in a list, a tensor or an array, or one alone; scalars of numpy and torch count
    as the numbers that they hold. A number and its decimal digits are the same id, as are a path and its string. A
    tuple of them (patient, slice) is one id, written as a JSON list.

    Raises:
        DataError: for an id of another type, such as a fraction.

    >>> sample_keys(torch.arange(2)), sample_keys(["0", np.int64(1)]), sample_keys("scan.png")
    (('0', '1'), ('0', '1'), ('scan.png',))
    """
    if isinstance(sample_ids, Tensor | np.ndarray):
        sample_ids = sample_ids.tolist()
    if isinstance(sample_ids, str | bytes | os.PathLike | np.generic) or not isinstance(sample_ids, Iterable):
        sample_ids = [sample_ids]
    if isinstance(sample_ids, Set | Mapping):
        raise DataError(f"the sample ids are a {type(sample_ids).__name__}: give a list, in the order of the images")
    return tuple(_key(each) for each in sample_ids)


def _key(given: Any) -> str:
    value = given.item() if isinstance(given, np.generic | np.ndarray | Tensor) and given.ndim == 0 else given
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str):
            # File names that are no UTF-8 come with lone surrogates, which can neither be hashed nor saved.
            return text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**128:
        return str(value)
    if isinstance(value, tuple) and value:
        return json.dumps([_key(part) for part in value])
    raise DataError(
        f"a sample id is of type {type(value).__name__} ({_in_words(value)}): give each image a string, a whole "
        "number below 2^128 or a path that stays the same in every epoch"
    )


def _in_words(value: object) -> str:
    try:
        return repr(str(value)[:40])
    except ValueError:
        return "of thousands of digits"


def distinct(keys: Sequence[str]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " n"]]:
    """Where each id comes first, and for each of the n ids its place among the m distinct ones.

    >>> firsts, places = distinct(["b", "a", "b"])
    >>> firsts.tolist(), places.tolist()
    ([0, 1], [0, 1, 0])
    """
    firsts: dict[str, int] = {}
    for index, key in enumerate(keys):
        firsts.setdefault(key, index)
    order = {key: place for place, key in enumerate(firsts)}
    return torch.tensor(list(firsts.values())), torch.tensor([order[key] for key in keys])

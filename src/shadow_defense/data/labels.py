"""Labels as people write them in a column, and the class names that they are made into."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shadow_defense.data.boundary import CLASSES, check_name
from shadow_defense.errors import DataError, shown, unknown_name

# More classes than this, and as many as there are images: names or measurements of the images, not their classes.
PLAUSIBLE = 10

# What programs write where there is nothing. "None" and "NA" may be names.
MISSING = frozenset({"nan", "<na>", "n/a", "null"})


def read_labels(
    given: Sequence[str], places: Sequence[str], classes: tuple[str, ...] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Class indices and class names of a column of labels.

    Whole numbers from 0 (``3``, or ``3.0`` as pandas writes them) are indices. Names are ordered by ``classes``, or
    alphabetically. What would silently become a class and is none is refused: several findings in one cell
    (``a|b``), -1 for uncertain, fractions, names that differ in case alone, a value of its own in each line.

    Args:
        given: the stripped cells, in the order of the lines.
        places: what to call each line in a message.

    Raises:
        DataError: naming the line.

    >>> read_labels(["10.0", "2.0"], ["line 2", "line 3"], None)[0]
    [10, 2]
    >>> read_labels(["sick", "fine"], ["line 2", "line 3"], None)
    ([1, 0], ('fine', 'sick'))
    """
    for place, label in zip(places, given, strict=True):
        if not label or (label.casefold() in MISSING and label not in (classes or ())):
            raise DataError(f"{place}: no label: fill in the column, or leave the line out")
    if classes is not None and given[0] in classes:
        return _named(given, places, classes), classes
    if _number(given[0]) is not None:
        indices = [_index(label, place, classes) for label, place in zip(given, places, strict=True)]
        _refuse_own_values(indices, places)
        return indices, classes or tuple(str(number) for number in range(max(indices) + 1))
    if classes is not None:
        return _named(given, places, classes), classes
    for place, label in zip(places, given, strict=True):
        if "|" in label:
            raise DataError(
                f"{place}: label '{shown(label)}' names several findings, and an image has one class here: keep one, "
                "or choose a column for one finding with 0 and 1"
            )
        check_name(label, f"{place}: label")
    _refuse_own_values(given, places)
    names = tuple(sorted(set(given)))
    check_class_names(names, places[0])
    return _named(given, places, names), names


def check_class_names(names: Sequence[str], place: str) -> None:
    """Raise :class:`DataError` for more classes than :data:`CLASSES`, or two that differ in case or spaces alone."""
    if len(names) > CLASSES:
        raise DataError(f"{place}: {len(names)} classes: expected at most {CLASSES}; choose another column or folder")
    alike: dict[str, str] = {}
    for name in names:
        first = alike.setdefault(" ".join(name.casefold().split()), name)
        if first is not name:
            raise DataError(
                f"{place}: classes '{shown(first)}' and '{shown(name)}' differ in case or spaces alone: write them "
                "alike"
            )


def _named(given: Sequence[str], places: Sequence[str], names: tuple[str, ...]) -> list[int]:
    index = {name: number for number, name in enumerate(names)}
    for label, place in zip(given, places, strict=True):
        if label not in index:
            raise DataError(f"{place}: {unknown_name('label', shown(label), names)}")
    return [index[label] for label in given]


def _number(label: str) -> float | None:
    try:
        # Short first: Python refuses thousands of digits, and underscores are no way to write a label.
        value = float(label) if len(label) <= 30 and "_" not in label else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _index(label: str, place: str, classes: tuple[str, ...] | None) -> int:
    number, most = _number(label), CLASSES if classes is None else len(classes)
    if number is None or number < 0 or number >= most or number != int(number):
        expected = f"a whole number from 0 below {CLASSES}" if classes is None else f"0 to {most - 1}"
        hint = "give uncertain ones a class of their own, or leave them out" if label.startswith("-") else "correct it"
        raise DataError(f"{place}: label '{shown(label)}' is out of range: expected {expected}; {hint}")
    return int(number)


def _refuse_own_values(labels: Sequence[object], places: Sequence[str]) -> None:
    distinct = len(set(labels))
    if distinct > PLAUSIBLE and distinct == len(labels):
        raise DataError(f"{places[0]}: each of {distinct} lines has a label of its own: name a column of classes")

"""What attacks noted of many updates, each thing once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)%")


def noted_once(notes: Iterable[str]) -> list[str]:
    """In the order in which they come; those that differ in percentages alone as one, from the least to the most.

    >>> noted_once(["41.6% are zero", "denoised", "60.5% are zero", "denoised"])
    ['41.6 to 60.5% are zero', 'denoised']
    """
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for note in notes:
        # Text and percentage in turn, text at both ends.
        pieces = PERCENTAGE.split(note)
        found.setdefault(tuple(pieces[::2]), []).append(pieces[1::2])
    return [_joined(texts, percentages) for texts, percentages in found.items()]


def _joined(texts: Sequence[str], percentages: Sequence[Sequence[str]]) -> str:
    ranges = [_range(each) for each in zip(*percentages, strict=True)]
    return "".join(text + between for text, between in zip_longest(texts, ranges, fillvalue=""))


def _range(percentages: Sequence[str]) -> str:
    least, most = min(percentages, key=float), max(percentages, key=float)
    return f"{least}%" if least == most else f"{least} to {most}%"

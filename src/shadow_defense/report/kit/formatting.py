"""Numbers as people read them: with their interval, with a sign, and in the forms of page, terminal and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shadow_defense.metrics.confidence import Estimate

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MISSING = "\N{EN DASH}"

# Between numbers that belong to one cell: a line must not break there.
_SPACE = "\N{NO-BREAK SPACE}"


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number with a fixed count of digits, a true minus sign, and its unit.

    >>> number(-1.25, 1), number(12.345, 2, "dB").split(), number(None), number(math.inf)
    ('−1.2', ['12.35', 'dB'], '–', '∞')
    """
    if value is None or math.isnan(value):
        return MISSING
    text = "∞" if math.isinf(value) else f"{abs(value):.{digits}f}"
    # No minus in front of what rounds to zero.
    sign = MINUS if value < 0 and text.strip("0.") else ""
    return f"{sign}{text}{_SPACE}{unit}" if unit else f"{sign}{text}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign also where it is positive.

    >>> signed(0.25, 2), signed(-0.25, 2), signed(0.0, 1), signed(None)
    ('+0.25', '−0.25', '0.0', '–')
    """
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def with_interval(estimate: Estimate, digits: int = 3) -> str:
    """``mean ± half width`` where the interval lies evenly around the mean, else ``mean [low, high]``.

    >>> with_interval(Estimate(2.0, (1.5, 2.5), 8), 1).split()
    ['2.0', '±', '0.5']
    >>> with_interval(Estimate(2.0, (1.9, 2.5), 8), 1).split(), with_interval(Estimate(2.0, None, 1), 1)
    (['2.0', '[1.9,', '2.5]'], '2.0')
    """
    return number(estimate.mean, digits) + _interval(estimate, digits)


def signed_with_interval(difference: Estimate, digits: int = 3) -> str:
    """:func:`with_interval` of a difference.

    >>> signed_with_interval(Estimate(-2.0, (-2.5, -1.5), 8), 1).split()
    ['−2.0', '±', '0.5']
    """
    return signed(difference.mean, digits) + _interval(difference, digits)


def _interval(estimate: Estimate, digits: int) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    if abs((estimate.mean - low) - (high - estimate.mean)) < 10.0**-digits:
        return f"{_SPACE}{PLUS_MINUS}{_SPACE}{number((high - low) / 2, digits)}"
    return f"{_SPACE}[{number(low, digits)},{_SPACE}{number(high, digits)}]"


def listed(items: Sequence[object]) -> str:
    """Items as in a sentence.

    >>> listed(["a", "b", "c"]), listed([1, 5]), listed([])
    ('a, b and c', '1 and 5', 'none')
    """
    texts = [str(item) for item in items]
    if not texts:
        return "none"
    return " and ".join(([", ".join(texts[:-1])] if len(texts) > 1 else []) + texts[-1:])


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "image"), counted(2, "image")
    ('1 image', '2 images')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """With signs and spaces as they are typed, for terminals and files that are searched.

    >>> plain(signed_with_interval(Estimate(-2.0, (-2.5, -1.5), 8), 1)), plain(MISSING)
    ('-2.0 ± 0.5', '-')
    """
    return text.replace(MINUS, "-").replace(_SPACE, " ").replace(MISSING, "-")


# Where Markdown and HTML would read markup; a bar ends a cell even in code.
_MARKUP = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#&~$"})


def markdown_text(text: object) -> str:
    """Text in one line of Markdown, without markup.

    >>> print(markdown_text("<b> a|b"))
    \\<b\\> a\\|b
    """
    return " ".join(str(text).split()).translate(_MARKUP)


def markdown_code(text: object) -> str:
    """Text for a code span or block of Markdown, which a grave accent would end."""
    return " ".join(str(text).split()).replace("`", "'")


def markdown_line(cells: Sequence[str]) -> str:
    """One line of a table in Markdown; its cells are Markdown already."""
    return plain(f"| {' | '.join(cells)} |")

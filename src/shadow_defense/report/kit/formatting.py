"""Numbers as people read them: with their interval, with a sign, and with what a change means in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MISSING = "\N{EN DASH}"

# Between numbers that belong to one cell: a line must not break there.
_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Metric:
    """How a metric of reconstructions is written and read.

    Attributes:
        higher_is_closer: whether a higher value means a reconstruction closer to the true image; None: not known.
    """

    label: str
    unit: str
    digits: int
    higher_is_closer: bool | None
    explanation: str


METRICS: dict[str, Metric] = {
    "psnr": Metric(
        "PSNR",
        "dB",
        2,
        True,
        "Peak signal-to-noise ratio, 10 log₁₀(1 / mean squared error) in decibels. Higher: the reconstruction is "
        "closer to the true image. 3 dB less means twice the squared error.",
    ),
    "ssim": Metric(
        "SSIM",
        "",
        3,
        True,
        "Structural similarity, at most 1. Higher: edges and textures are where they are in the true image.",
    ),
    "lpips": Metric(
        "LPIPS",
        "",
        3,
        False,
        "Learned perceptual distance, 0 for equal images. Lower: the reconstruction looks more like the true image "
        "to a trained network.",
    ),
}

RELATIVE_LEAKAGE = Metric(
    "RDLV",
    "",
    3,
    True,
    "Relative data leakage value: by how large a share the reconstruction's SSIM exceeds that of the mean of public "
    "images, which an attacker has without any update. 0: nothing learnt; 1: twice as similar.",
)

REGIONS: dict[str, str] = {
    "whole": "Whole image",
    "inside": "Inside the foreground",
    "outside": "Outside the foreground",
    "best_match": "Best match over all of the client's images",
    "other": "Other measures",
}


def metric_and_region(key: str) -> tuple[str, str]:
    """The two parts of a metric's key in ``results.json``.

    >>> metric_and_region("psnr_inside"), metric_and_region("best_match_ssim"), metric_and_region("entropy")
    (('psnr', 'inside'), ('ssim', 'best_match'), ('entropy', 'other'))
    """
    if key.startswith("best_match_"):
        return key.removeprefix("best_match_"), "best_match"
    name, _, region = key.rpartition("_")
    return (name, region) if region in ("whole", "inside", "outside") else (key, "other")


def metric_named(name: str) -> Metric:
    """The metric of that name; one that is not in :data:`METRICS` is shown under its own name, without a reading."""
    return METRICS.get(name) or Metric(name.replace("_", " "), "", 3, None, "")


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


def signed(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A difference, with its sign also where it is positive.

    >>> signed(0.25, 2), signed(-0.25, 2), signed(0.0, 1), signed(None)
    ('+0.25', '−0.25', '0.0', '–')
    """
    text = number(value, digits, unit)
    return f"+{text}" if value is not None and value > 0 and text.strip(f"0.{_SPACE}{unit}") else text


def with_interval(mean: float, interval: Sequence[float] | None, digits: int = 3) -> str:
    """``mean ± half width`` where the interval lies evenly around the mean, else ``mean [low, high]``.

    >>> with_interval(2.0, (1.5, 2.5), 1).split()
    ['2.0', '±', '0.5']
    >>> with_interval(2.0, (1.9, 2.5), 1).split(), with_interval(2.0, None, 1)
    (['2.0', '[1.9,', '2.5]'], '2.0')
    """
    return number(mean, digits) + _interval(mean, interval, digits)


def signed_with_interval(mean: float, interval: Sequence[float] | None, digits: int = 3) -> str:
    """:func:`with_interval` of a difference.

    >>> signed_with_interval(-2.0, (-2.5, -1.5), 1).split()
    ['−2.0', '±', '0.5']
    """
    return signed(mean, digits) + _interval(mean, interval, digits)


def _interval(mean: float, interval: Sequence[float] | None, digits: int) -> str:
    if interval is None:
        return ""
    low, high = interval
    if abs((mean - low) - (high - mean)) < 10.0**-digits:
        return f"{_SPACE}{PLUS_MINUS}{_SPACE}{number((high - low) / 2, digits)}"
    return f"{_SPACE}[{number(low, digits)},{_SPACE}{number(high, digits)}]"


def reading(metric: Metric, difference: Estimate, *, baseline: bool = False) -> str:
    """What a difference to the arm without defense means, in words.

    A difference that is not clear is not spoken of; one without an interval is said to have none. The baseline is
    no protection but a guess, so its difference tells who wins, the attack without defense or the guess.

    >>> reading(METRICS["psnr"], Estimate(-3.0, (-4.0, -2.0), 8))
    'better protected'
    >>> reading(METRICS["lpips"], Estimate(-0.3, None, 1))
    'worse protected (no interval)'
    >>> reading(METRICS["psnr"], Estimate(-3.0, (-7.0, 1.0), 8))
    'no clear difference'
    >>> reading(METRICS["psnr"], Estimate(3.0, (2.0, 4.0), 8), baseline=True)
    'guess beats attack'
    """
    closer = (difference.mean > 0) == metric.higher_is_closer
    if metric.higher_is_closer is None:
        meaning = "higher" if difference.mean > 0 else "lower"
    elif baseline:
        meaning = "guess beats attack" if closer else "attack beats guess"
    else:
        meaning = "worse protected" if closer else "better protected"
    return said_if_clear(meaning, difference)


def said_if_clear(meaning: str, difference: Estimate) -> str:
    """``meaning`` where the difference is clear.

    >>> said_if_clear("higher", Estimate(0.0, None, 1)), said_if_clear("higher", Estimate(0.1, None, 1))
    ('no clear difference', 'higher (no interval)')
    """
    if difference.mean == 0 or difference.clear() is False:
        return "no clear difference"
    return meaning if difference.clear() else f"{meaning} (no interval)"


def better_when(metric: Metric) -> str:
    """Which direction of a metric is better for the client, in words; empty where it is not known.

    >>> better_when(METRICS["ssim"]), better_when(METRICS["lpips"])
    ('lower is better protected', 'higher is better protected')
    """
    if metric.higher_is_closer is None:
        return ""
    return f"{'lower' if metric.higher_is_closer else 'higher'} is better protected"


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

    >>> plain(signed_with_interval(-2.0, (-2.5, -1.5), 1)), plain(MISSING)
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

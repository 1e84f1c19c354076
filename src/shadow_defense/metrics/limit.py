"""A limit on a metric, as commands take it: ``ssim=0.4``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shadow_defense.errors import ConfigError, shown, unknown_name

ANY = (-math.inf, math.inf)
"""The range of a metric that may be limited to any finite number."""

LIMITED = dict.fromkeys(("ssim", "psnr", "rdlv", "iip"), ANY)
"""The metrics that a reconstruction may be limited in; iip is 1 where the nearest gallery image is the client's."""

TARGET_RANGES: dict[str, tuple[float, float]] = {"ssim": (0.0, 1.0), "psnr": (0.0, 100.0), "rdlv": (0.0, 1e6)}
"""For each measure of leakage the open range that a calibration's target can lie in; all grow with what is leaked.

The mean image's RDLV is 0 by definition.
"""


@dataclass(frozen=True)
class Limit:
    """What a metric must stay below."""

    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric}={self.value:g}"


def parse_limit(text: str, ranges: Mapping[str, tuple[float, float]], option: str, such_as: str = "ssim=0.4") -> Limit:
    """The limit that an option names.

    Args:
        ranges: of each metric the open range in which its limit may lie.

    Raises:
        ConfigError: for no ``metric=value``, an unknown metric, and a value outside its range.

    >>> parse_limit(" ssim = 0.4", {"ssim": (0.0, 1.0)}, "--target")
    Limit(metric='ssim', value=0.4)
    """
    metric, separator, number = (part.strip() for part in text.partition("="))
    if not separator:
        raise ConfigError(f"{option} {shown(text)}: expected metric=value, such as {such_as}")
    if metric not in ranges:
        raise ConfigError(f"{option}: {unknown_name('metric', shown(metric), ranges)}; such as {such_as}")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    low, high = ranges[metric]
    if not low < value < high:
        wanted = "a finite number" if (low, high) == ANY else f"a number above {low:g} and below {high:g}"
        raise ConfigError(f"{option} {metric}={shown(number)}: expected {wanted}, such as {such_as}")
    return Limit(metric, value)

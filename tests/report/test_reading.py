"""Measures out of JSON: an interval of another shape is one line, and none is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from shadow_defense.errors import RunError
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.records.reading import Measure, read_record


@dataclass(frozen=True)
class Measured:
    """Holds one."""

    value: Measure


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"mean": 1, "low": 0, "high": 2, "count": 4}, Estimate(1.0, (0.0, 2.0), 4)),
        ({"mean": 1, "low": None, "high": None, "count": 1}, Estimate(1.0, None, 1)),
    ],
)
def test_measures_as_they_are_written(given: Any, wanted: Estimate) -> None:
    assert read_record(Measured, {"value": given}).value == wanted


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mean": 1},
        {"mean": "x", "low": 0, "high": 2, "count": 4},
        {"mean": 1, "low": "x", "high": 2, "count": 4},
        {"mean": 1, "low": 0, "count": 4},
        {"mean": 1, "low": 0, "high": 2, "count": None},
        5,
    ],
)
def test_another_shape_is_one_line(given: Any) -> None:
    with pytest.raises(RunError, match=r"cannot read these results: value.*compute them again"):
        read_record(Measured, {"value": given})

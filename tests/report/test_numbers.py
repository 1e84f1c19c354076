"""Every plan's record as a table of numbers."""

from __future__ import annotations

import pytest

from shadow_defense.errors import ConfigError
from shadow_defense.experiment.results import WRITTEN
from shadow_defense.report.numbers import numbers
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.run import RunRecord


def test_every_record_that_is_written_has_numbers() -> None:
    assert set(WRITTEN.values()) <= numbers.registry.keys()
    with pytest.raises(ConfigError, match="int is no record with numbers"):
        numbers(1)


def test_a_run_has_a_row_for_each_score(record: RunRecord) -> None:
    table = numbers(record)
    assert len(table.rows) == sum(len(row.metrics) for each in record.tables for row in each.rows)


def test_a_comparison_has_each_number_once(comparison: ComparisonRecord) -> None:
    lines = numbers(comparison).csv().splitlines()
    assert len(lines) == len(set(lines)) > len(comparison.defenses)

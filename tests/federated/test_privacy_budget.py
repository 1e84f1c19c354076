"""Epsilons add up over runs, and the update that would pass the site's budget stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadow_defense.errors import DefenseError, RunError
from shadow_defense.federated.privacy_budget import spend
from shadow_defense.files import read_json


def test_runs_add_up_and_rounds_of_a_run_replace_one_another(tmp_path: Path) -> None:
    for run, epsilon in (("a", 1.0), ("a", 1.5), ("b", 2.0)):
        spend(tmp_path, run, "site", {"epsilon_spent": epsilon}, 4.0)
    assert read_json(tmp_path / "budget" / "site.json") == {"a": 1.5, "b": 2.0}
    with pytest.raises(DefenseError, match=r"spent an epsilon of 4.1 over all runs, and the site's budget is 4"):
        spend(tmp_path, "b", "site", {"epsilon_spent": 2.6}, 4.0)
    # What stays is not counted; another client has a budget of its own.
    assert read_json(tmp_path / "budget" / "site.json")["b"] == 2.0
    spend(tmp_path, "b", "other", {"epsilon_spent": 2.6}, 4.0)
    spend(tmp_path, "b", "site", {"epsilon_spent": 9.0}, None)


def test_a_defense_that_counts_none_stays_where_there_is_a_budget(tmp_path: Path) -> None:
    spend(tmp_path, "a", "site", {"noise_rms": 1.0}, None)
    assert not (tmp_path / "budget").exists()
    with pytest.raises(DefenseError, match="counts none"):
        spend(tmp_path, "a", "site", {"noise_rms": 1.0}, 4.0)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": "b"}', '{"b": NaN}', '{"b": -9}'])
def test_a_damaged_log_lets_nothing_leave(tmp_path: Path, text: str) -> None:
    (tmp_path / "budget").mkdir()
    (tmp_path / "budget" / "site.json").write_text(text)
    with pytest.raises(RunError):
        spend(tmp_path, "a", "site", {"epsilon_spent": 1.0}, None)


def test_an_epsilon_that_is_no_number_passes_no_budget(tmp_path: Path) -> None:
    with pytest.raises(DefenseError, match="nothing leaves any more"):
        spend(tmp_path, "a", "site", {"epsilon_spent": float("nan")}, 4.0)

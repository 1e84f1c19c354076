"""What attacks noted, each thing once."""

from __future__ import annotations

from shadow_defense.report.sentences.noted import noted_once


def test_notes_that_differ_in_percentages_alone_are_one() -> None:
    notes = ["9.5% of {} kept, 3% moved", "denoised by 2 rounds", "10.5% of {} kept, 3% moved", "denoised by 3 rounds"]
    assert noted_once(notes) == ["9.5 to 10.5% of {} kept, 3% moved", "denoised by 2 rounds", "denoised by 3 rounds"]
    assert noted_once([]) == [] and noted_once(["50% each", "each"]) == ["50% each", "each"]

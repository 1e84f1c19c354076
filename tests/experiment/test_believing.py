"""Which of several attacks on an update counts, from scores made by hand."""

from __future__ import annotations

import pytest

from shadow_defense.experiment.plans.evidence.believing import attacked, believed
from shadow_defense.experiment.tasks.scoring import ImageScore, Score
from shadow_defense.report.records.scores import MEAN_IMAGE


def score(
    attack: str, psnr: float, misfit: float | None, *, arm: str = "noise", round: int = 0, seed: int = 0
) -> Score:
    row = ImageScore(0, 0, f"image of {seed}", {"psnr_whole": psnr, "ssim_whole": psnr / 100})
    return Score(arm, attack, round, "one", (row,), seed=seed, misfit=misfit)


GUESSED = [score("a", 10.0, None, arm=MEAN_IMAGE, seed=seed) for seed in (0, 1)]


def test_the_attack_that_explains_the_update_counts_and_not_the_one_nearer_to_the_truth() -> None:
    """The second comes 8 dB nearer, and leaves more of the update unexplained: only the truth would choose it."""
    left = attacked([*GUESSED, score("a", 12.0, 0.1), score("b", 20.0, 0.2)], "noise")
    assert left is not None and [each.attack for each in left.scores] == ["a"]
    assert left.above == {0: [2.0]} and left.closest == {0: [10.0]} and left.similar == {0: [0.12]}


def test_each_update_is_judged_by_itself() -> None:
    scores = [
        score("a", 12.0, 0.1),
        score("b", 13.0, 0.2),
        score("a", 14.0, 0.4, seed=1),
        score("b", 11.0, 0.3, seed=1),
    ]
    left = attacked([*GUESSED, *scores], "noise")
    assert left is not None and [each.attack for each in left.scores] == ["a", "b"]
    assert left.above == {0: [2.0], 1: [1.0]} and left.closest == {0: [3.0], 1: [4.0]}


def test_the_round_that_leaves_most_counts_and_misfits_of_rounds_are_not_compared() -> None:
    early, late = score("a", 12.0, 0.001), score("a", 15.0, 0.9, round=9)
    left = attacked([*GUESSED, early, late], "noise")
    assert left is not None and left.round == 9 and left.above == {0: [5.0]}


def test_an_attack_without_a_misfit_is_believed_where_there_is_no_other() -> None:
    unknown, known = score("a", 12.0, None), score("b", 13.0, 0.9)
    assert believed([unknown, known]) == [known] and believed([unknown]) == [unknown]


@pytest.mark.parametrize("scores", [[], [score("a", 12.0, 0.1)]])
def test_nothing_is_left_to_say_of_what_was_not_scored_or_not_guessed(scores: list[Score]) -> None:
    assert attacked(scores, "noise") is None

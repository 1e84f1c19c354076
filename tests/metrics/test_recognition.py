"""The rule at its borders."""

from __future__ import annotations

import pytest

from shadow_defense.metrics.recognition import recognition


@pytest.mark.parametrize(
    ("similarity", "mean_image", "said"),
    [
        (0.5, 0.25, "recognisable"),
        (0.49, 0.25, "partly"),
        (0.33, 0.25, "partly"),
        (0.31, 0.25, "not recognisable"),
        (-0.2, 0.25, "not recognisable"),
        # Chest radiographs resemble their mean: what is recognisable lies closer.
        (0.6, 0.6, "not recognisable"),
        (0.7, 0.6, "partly"),
        (0.74, 0.6, "recognisable"),
        # A mean image of no use counts as 0, not below it.
        (0.34, -0.5, "recognisable"),
        (0.32, -0.5, "partly"),
        (0.5, None, "recognisable"),
        (0.49, None, "partly"),
        (1.0, 1.0, "not recognisable"),
    ],
)
def test_how_far_from_the_mean_image_to_the_true_one(similarity: float, mean_image: float | None, said: str) -> None:
    assert recognition(similarity, mean_image) == said

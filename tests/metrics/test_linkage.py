"""Rank-1 and areas by hand and against scikit-learn's area under the curve."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.errors import DataError
from shadow_defense.metrics.linkage import hits, patient_ranks_above, ranks_above

SIMILARITY = torch.rand(30, 20, generator=torch.Generator().manual_seed(0))
OWN = torch.arange(30) % 20


def test_areas_are_torchmetrics_own() -> None:
    from torchmetrics.functional.classification import binary_auroc

    wanted = [
        float(binary_auroc(row, torch.nn.functional.one_hot(own, 20))) for row, own in zip(SIMILARITY, OWN, strict=True)
    ]
    assert ranks_above(SIMILARITY, OWN).tolist() == pytest.approx(wanted, abs=1e-6)


def test_of_patients_the_same_image_does_not_count() -> None:
    from torchmetrics.functional.classification import binary_auroc

    groups = [f"patient {index // 4}" for index in range(20)]
    wanted = []
    for row, own in zip(SIMILARITY, OWN.tolist(), strict=True):
        kept = [place for place in range(20) if place != own]
        same = torch.tensor([int(groups[place] == groups[own]) for place in kept])
        wanted.append(float(binary_auroc(row[kept], same)))
    assert patient_ranks_above(SIMILARITY, OWN, groups).tolist() == pytest.approx(wanted, abs=1e-6)
    assert len(patient_ranks_above(SIMILARITY, OWN, [str(index) for index in range(20)])) == 0


def test_equal_similarities_are_chance() -> None:
    flat = torch.zeros(5, 10)
    assert hits(flat, torch.arange(5)).tolist() == pytest.approx([0.1] * 5)
    assert ranks_above(flat, torch.arange(5)).tolist() == pytest.approx([0.5] * 5)


def test_a_gallery_of_one_is_refused() -> None:
    with pytest.raises(DataError, match="1 images: expected two"):
        hits(torch.zeros(3, 1), torch.zeros(3).long())

"""Classes that count as one."""

from __future__ import annotations

import pytest
import torch

from shadow_defense.data.build import load_dataset
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.joining import joined
from shadow_defense.data.settings import DataSettings
from shadow_defense.errors import DataError


def parts(*labels: int) -> Parts:
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    train = ImageSet(images, torch.tensor(labels), tuple(map(str, range(len(labels)))))
    return Parts(train, train.subset([0, 2]), None, ("a", "b", "c"))


def test_labels_of_every_part_are_the_groups() -> None:
    found = joined(parts(0, 1, 2, 2), {"rest": ("b", "c"), "first": ("a",)})
    assert found.class_names == ("rest", "first") and found.train.labels.tolist() == [1, 0, 0, 0]
    assert found.validation is not None and found.validation.labels.tolist() == [1, 0] and found.test is None


@pytest.mark.parametrize(
    ("groups", "error"),
    [
        ({"x": ("a", "b")}, "'c' in no group"),
        ({"x": ("a", "b"), "y": ("b", "c")}, "twice"),
        ({"x": ("a", "b"), "y": ("c", "d")}, "'d'"),
    ],
)
def test_each_class_is_in_one_group(groups: dict[str, tuple[str, ...]], error: str) -> None:
    with pytest.raises(DataError, match=error):
        joined(parts(0, 1, 2), groups)


def test_a_federation_has_the_joined_classes() -> None:
    settings = DataSettings(source="faces", image_size=8, joined={"all": ("not a face", "face")})
    names = load_dataset(settings.model_copy(update={"joined": None}), 0).class_names
    data = load_dataset(settings.model_copy(update={"joined": {"all": names}}), 0)
    assert data.class_names == ("all",) and not data.test.labels.any()

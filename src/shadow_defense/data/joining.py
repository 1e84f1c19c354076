"""Classes that count as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.errors import DataError, shown, unknown_name


def joined(parts: Parts, groups: Mapping[str, Sequence[str]]) -> Parts:
    """The parts with the classes of ``groups``, by their new names, in that order.

    Raises:
        DataError: unless every class stands in exactly one group.
    """
    place = {name: number for number, members in enumerate(groups.values()) for name in members}
    for name in place:
        if name not in parts.class_names:
            raise DataError(unknown_name("class in data.joined", shown(name), parts.class_names))
    lacking = [name for name in parts.class_names if name not in place]
    if lacking or len(place) < sum(map(len, groups.values())):
        raise DataError(
            f"data.joined has class '{shown(lacking[0])}' in no group: name each class in one"
            if lacking
            else "data.joined names a class twice: name each class in one group"
        )
    labels = torch.tensor([place[name] for name in parts.class_names])

    def renamed(images: ImageSet) -> ImageSet:
        return replace(images, labels=labels[images.labels])

    return replace(
        parts,
        train=renamed(parts.train),
        validation=parts.validation and renamed(parts.validation),
        test=parts.test and renamed(parts.test),
        public=parts.public and renamed(parts.public),
        class_names=tuple(groups),
    )

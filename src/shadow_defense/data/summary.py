"""What a data set holds, in plain values: the content of `shadow-defense data show`."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.data.dataset import FederatedDataset, ImageSet
from shadow_defense.data.duplicates import count_shared


def summarise(dataset: FederatedDataset) -> dict[str, Any]:
    """Sizes, classes of each client, normalisation, and images that stand in two parts.

    ``duplicates`` counts, for each pair of parts that share any, the images of the first that stand byte for byte
    in the second; ``patients at two clients`` is there where patients are known.
    """
    parts = {
        "train": [client.train for client in dataset.clients],
        "validation": [client.validation for client in dataset.clients],
        "test": [dataset.test],
        "public": [dataset.public],
    }
    joined = {name: _pixels(sets) for name, sets in parts.items()}
    shared = {
        f"{first} in {second}": count_shared(joined[first], joined[second]) for first, second in combinations(joined, 2)
    }
    summary: dict[str, Any] = {
        "name": dataset.name,
        "image size": list(dataset.image_size),
        "channels": dataset.channels,
        "classes": list(dataset.class_names),
        "clients": [
            {
                "name": client.name,
                "batch size": client.batch_size,
                "train": len(client.train),
                "train by class": _by_class(client.train, dataset.class_names),
                "validation": len(client.validation),
                "test": len(client.test),
            }
            for client in dataset.clients
        ],
        "public": len(dataset.public),
        "test": len(dataset.test),
        "lesion masks": any(client.train.masks is not None for client in dataset.clients),
        "normalisation": {
            "mean": [round(value, 6) for value in dataset.normalisation.mean],
            "std": [round(value, 6) for value in dataset.normalisation.std],
        },
        "duplicates": {pair: count for pair, count in shared.items() if count},
        "notes": list(dataset.notes),
    }
    patients = [set(client.train.groups) for client in dataset.clients if client.train.groups is not None]
    if patients:
        summary["patients"] = len(set.union(*patients))
        summary["patients at two clients"] = sum(map(len, patients)) - len(set.union(*patients))
    return summary


def _by_class(images: ImageSet, class_names: tuple[str, ...]) -> dict[str, int]:
    counts = torch.bincount(images.labels, minlength=len(class_names)).tolist()
    return dict(zip(class_names, counts, strict=True))


def _pixels(sets: list[ImageSet]) -> UInt8[Tensor, "n c h w"]:
    return torch.cat([images.images for images in sets])

"""What the sites and the server agree on: the model, and who holds which of the bundled faces (16 x 16, grey)."""

from __future__ import annotations

import torch
from torch import Tensor

from shadow_defense.data.faces import read_faces
from shadow_defense.models.convnet import ConvNet

SIDE = 16
HELD = {"site-1": 1, "site-2": 8, "site-3": 8}
"""Images of each site, half of them faces."""

PUBLIC = 40
"""Images of each label that anybody may have: the shadow generator learns from them."""


class FacesModel(ConvNet):
    """The model that is trained; ``faces.yaml`` names the same for the audit."""

    def __init__(self) -> None:
        # The server makes the model anew from the job's configuration: the same in every run.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(
                channels=1, classes=2, image_size=(SIDE, SIDE), width=8, normalisation="none", activation="gelu"
            )


def images_of(site: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """A site's images (n, 1, 16, 16) in [-1, 1], their labels, and their names."""
    first = sum(count for name, count in HELD.items() if name < site)
    return _chosen([*_alternating()][first : first + HELD[site]])


def public_images() -> Tensor:
    """Images (n, 1, 16, 16), uint8, that no site holds."""
    whole = read_faces(image_size=SIDE, channels=1).train.images
    return torch.cat([whole[100 - PUBLIC : 100], whole[200 - PUBLIC : 200]])


def _alternating() -> list[int]:
    # The source has a hundred faces first, then a hundred other crops.
    return [index for pair in zip(range(100 - PUBLIC), range(100, 200 - PUBLIC), strict=True) for index in pair]


def _chosen(indices: list[int]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    whole = read_faces(image_size=SIDE, channels=1).train
    images = whole.images[indices].float() / 127.5 - 1
    return images, whole.labels[indices], tuple(whole.sample_ids[index] for index in indices)

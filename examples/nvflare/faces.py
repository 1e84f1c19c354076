"""What the sites and the server agree on: the model, and who holds which of the bundled faces (16 x 16, grey)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shadow_defense.data.dataset import ImageSet
from shadow_defense.data.faces import read_faces
from shadow_defense.data.npz import read_npz
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


def images_of(site: str, file: Path | None = None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """A site's images (n, 1, 16, 16) in [-1, 1], their labels, and their names; of an .npz where one is given."""
    whole = _private() if file is None else read_npz(path=file, image_size=SIDE, channels=1).train
    first = sum(count for name, count in HELD.items() if name < site)
    held = whole.subset(_alternating(whole.labels)[first : first + HELD[site]])
    return held.images.float() / 127.5 - 1, held.labels, held.sample_ids


def public_images() -> Tensor:
    """Images (n, 1, 16, 16), uint8, that no site holds."""
    whole = read_faces(image_size=SIDE, channels=1).train.images
    return torch.cat([whole[100 - PUBLIC : 100], whole[200 - PUBLIC : 200]])


def _private() -> ImageSet:
    """All but the public ones; the source has a hundred faces first, then a hundred other crops."""
    return read_faces(image_size=SIDE, channels=1).train.subset([*range(100 - PUBLIC), *range(100, 200 - PUBLIC)])


def _alternating(labels: Tensor) -> list[int]:
    """Places of one label and of the other in turn, as far as both reach."""
    ones, others = ((labels == each).nonzero()[:, 0].tolist() for each in (0, 1))
    return [place for pair in zip(ones, others, strict=False) for place in pair]

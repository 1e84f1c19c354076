"""The network of the public images: what everybody may know of the task, without any client (docs/protect.md)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation, measure_normalisation
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.protection.directions import train_classifier


class PublicNetwork(nn.Module):
    """A classifier of images in [0, 1], which it normalises itself."""

    def __init__(self, model: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(-1, 1, 1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.model((images - self.get_buffer("mean")) / self.get_buffer("std"))


def train_public_network(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, "n"],
    *,
    seed: int,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> PublicNetwork:
    """As protection reads with: a small network, trained on the images moved by some pixels; in eval mode.

    Raises:
        DataError: when the images are all of one class.
    """
    normalisation = measure_normalisation(ImageSet(images, labels, tuple(map(str, range(len(images))))))
    model = train_classifier(
        images.float() / 255, labels, normalisation, seed=seed, moved=True, progress=progress, device=device
    )
    return PublicNetwork(model, normalisation).to(device).eval()

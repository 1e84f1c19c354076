"""The map that goes before the model at test time, as a program that needs nothing of this package."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.files import atomic_path
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture

TRANSFORM = "transform.pt2"


class Projection(nn.Module):
    """``x -> mean + B D V V^T w`` on images in [0, 1] (:meth:`.Task.tested`); made of public constants alone."""

    def __init__(self, texture: Task) -> None:
        super().__init__()
        whitening = texture.whitening
        self.register_buffer("mean", whitening.mean)
        self.register_buffer("reads", whitening.directions / whitening.deviations @ texture.spared)
        self.register_buffer("writes", whitening.coloured(texture.spared.T))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mean = self.get_buffer("mean")
        spared = (images.flatten(1) - mean) @ self.get_buffer("reads")
        return (mean + spared @ self.get_buffer("writes")).view_as(images)


def module_of(texture: Texture) -> nn.Module:
    """What goes before the model at test time; the identity where the texture maps nothing."""
    return Projection(texture).eval() if isinstance(texture, Task) else nn.Identity()


def write_transform(out: Path, texture: Task) -> None:
    """Write it, exported for any number of images, unless it is there; ``torch.export.load`` reads it."""
    if (out / TRANSFORM).exists():
        return
    example = torch.zeros(2, *texture.whitening.shape)
    program = torch.export.export(
        Projection(texture).eval(), (example,), dynamic_shapes={"images": {0: torch.export.Dim("images")}}
    )
    with atomic_path(out / TRANSFORM) as temporary:
        torch.export.save(program, temporary)

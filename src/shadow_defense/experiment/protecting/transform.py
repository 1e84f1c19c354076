"""The map that goes before the model at test time, as a program that needs nothing of this package."""

from __future__ import annotations

from pathlib import Path

import torch

from shadow_defense.files import atomic_path
from shadow_defense.protection.task import Task

TRANSFORM = "transform.pt2"


def write_transform(out: Path, texture: Task) -> None:
    """Write it, exported for any number of images, unless it is there; ``torch.export.load`` reads it."""
    if (out / TRANSFORM).exists():
        return
    example = torch.zeros(2, *texture.whitening.shape)
    program = torch.export.export(
        texture.module(), (example,), dynamic_shapes={"images": {0: torch.export.Dim("images")}}
    )
    with atomic_path(out / TRANSFORM) as temporary:
        torch.export.save(program, temporary)

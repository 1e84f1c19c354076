"""A small U-Net from planes to an image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SCALES = 3
GROUPS = 4


class UNet(nn.Module):
    """Two 3x3 convolutions at each of three scales, down and up again, with skips (Ronneberger et al. 2015).

    Any side: what does not halve evenly is padded. The last layer begins at zero.
    """

    def __init__(self, planes: int, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**scale for scale in range(SCALES)]
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip([planes, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _block(deep + flat, flat) for deep, flat in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, planes: Float[Tensor, "n p h w"]) -> Float[Tensor, "n c h w"]:
        height, width = planes.shape[2:]
        step = 2 ** (SCALES - 1)
        found = F.pad(planes, (0, -width % step, 0, -height % step), mode="replicate")
        skips: list[Tensor] = []
        for scale, block in enumerate(self.down):
            found = block(found if scale == 0 else F.avg_pool2d(found, 2))
            skips.append(found)
        skips.pop()
        for block in self.up:
            found = block(torch.cat([F.interpolate(found, scale_factor=2), skips.pop()], dim=1))
        return self.last(found)[:, :, :height, :width]


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.GroupNorm(GROUPS, after),
        nn.GELU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(GROUPS, after),
        nn.GELU(),
    )

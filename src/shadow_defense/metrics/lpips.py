"""Learned perceptual distance between images (LPIPS), computed here from published weights."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.errors import ConfigError, DataError, unknown_name
from shadow_defense.metrics.inputs import check_same_shape
from shadow_defense.metrics.lpips_trunks import KINDS, LpipsWeights
from shadow_defense.metrics.region import region_mean

# AlexNet's pools leave no pixels of smaller images.
LEAST_SIZE = 64

# Mean and deviation of ImageNet, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

# Pixels per pass through the trunk: st-lpips then peaks at some 0.8 GB (measured at 224 px).
_PIXELS_AT_ONCE = 2**19


class Lpips(nn.Module):
    """LPIPS with fixed weights; see :func:`load_lpips`.

    ``sum over layers of mean over pixels of sum over channels of w (f1 - f2)²``, where f are a layer's
    activations scaled to unit length over the channels and w >= 0 the layer's linear head (Zhang et al. 2018,
    "The unreasonable effectiveness of deep features as a perceptual metric"). Inputs are in [0, 1] and are
    scaled to [-1, 1] here; grey is repeated to three channels; images whose shorter side is under 64 px are
    enlarged bilinearly until it is 64 px. Images are on the model's device; nothing is trained, no gradient kept.
    """

    def __init__(self, name: str, trunk: nn.Module, weights: LpipsWeights) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        for i, head in enumerate(weights.heads):
            self.register_buffer(f"head_root_{i}", head.sqrt().view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def _prepare(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 x y"]:
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise DataError(f"LPIPS takes images of 1 or 3 channels, not {channels}: choose channels first")
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        signed = 2 * images.to(shift.dtype).expand(-1, 3, -1, -1) - 1
        shorter = min(height, width)
        if shorter < LEAST_SIZE:
            size = (round(height * LEAST_SIZE / shorter), round(width * LEAST_SIZE / shorter))
            signed = F.interpolate(signed, size=size, mode="bilinear", align_corners=False)
        return (signed - shift) / scale

    def _features(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """Each layer's unit features times the root of its head: distances are squared differences of these."""
        activations = self.trunk(self._prepare(images))
        return [
            self.get_buffer(f"head_root_{i}") * a / (a.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            for i, a in enumerate(activations)
        ]

    def _embedding(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """One vector per image such that LPIPS is the squared Euclidean distance of two of them."""
        features = self._features(images)
        return torch.cat([f.flatten(1) / (f.shape[2] * f.shape[3]) ** 0.5 for f in features], dim=1)

    @torch.no_grad()
    def forward(
        self, reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n h w"]]:
        """Distance of each pair (>= 0, 0 where equal) and its map over the pixels of the given images.

        The map is the sum of the layers' maps, each resized bilinearly to the images' size; its mean differs
        slightly from the distance, which averages each layer on its own grid.

        Raises:
            DataError: on unequal shapes and on channels other than 1 or 3.
        """
        check_same_shape(reconstructions, truths)
        size = (truths.shape[2], truths.shape[3])
        distances = truths.new_zeros(len(truths), dtype=torch.float32)
        maps = truths.new_zeros(len(truths), *size, dtype=torch.float32)
        for chunk in torch.arange(len(truths)).split(_images_at_once(truths)):
            pairs = zip(self._features(reconstructions[chunk]), self._features(truths[chunk]), strict=True)
            for first, second in pairs:
                layer = (first - second).square().sum(dim=1, keepdim=True)
                distances[chunk] += layer.mean(dim=(1, 2, 3))
                maps[chunk] += F.interpolate(layer, size=size, mode="bilinear", align_corners=False)[:, 0]
        return distances, maps

    def distance(
        self,
        reconstructions: Float[Tensor, "n c h w"],
        truths: Float[Tensor, "n c h w"],
        region: Bool[Tensor, "n h w"] | Float[Tensor, "n h w"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Distance of each pair, or the mean of its map over a region (NaN where the region is empty)."""
        distances, maps = self(reconstructions, truths)
        return distances if region is None else region_mean(maps, region)

    @torch.no_grad()
    def pairwise(
        self, reconstructions: Float[Tensor, "n c h w"], truths: Float[Tensor, "m c h w"]
    ) -> Float[Tensor, "n m"]:
        """Distance of every reconstruction to every truth; the trunk sees each image once per chunk."""
        result = truths.new_zeros(len(reconstructions), len(truths), dtype=torch.float32)
        for rows in torch.arange(len(reconstructions)).split(_images_at_once(reconstructions)):
            first = self._embedding(reconstructions[rows])
            for columns in torch.arange(len(truths)).split(_images_at_once(truths)):
                second = self._embedding(truths[columns])
                for row, vector in zip(rows.tolist(), first, strict=True):
                    result[row, columns] = (second - vector).square().sum(dim=1)
        return result


def _images_at_once(images: Float[Tensor, "n c h w"]) -> int:
    pixels = max(images.shape[2], LEAST_SIZE) * max(images.shape[3], LEAST_SIZE)
    return max(1, _PIXELS_AT_ONCE // pixels)


def load_lpips(name: str = "st-lpips", weights: Path | None = None) -> Lpips:
    """The LPIPS of that name, with its weights read.

    ``st-lpips`` is shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022); its weights come with the installed
    package stlpips-pytorch. ``alexnet`` is LPIPS v0.1, the one most papers report, from torchvision's file of AlexNet
    and the heads that come with torchmetrics, or from an npz of its weights.
    Their numbers are not comparable with each other: report the name with the value.

    Raises:
        ConfigError: for an unknown name.
        ModelError: when weights are missing or damaged.
    """
    if name not in KINDS:
        raise ConfigError(unknown_name("LPIPS", name, KINDS))
    kind = KINDS[name]
    read = kind.read_weights(weights)
    return Lpips(name, kind.trunk(read), read).eval()

"""The plan of the synthesis network: rates, sizes, cut-offs, channels, paddings of its layers (docs/generators.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""The sides of images in pixels."""
FIRST_CUTOFF = 2.0
FIRST_STOPBAND = 2.0**2.1
LAST_STOPBAND = 2.0**0.3
"""The last stop-band edge, as a multiple of the last cut-off."""
MARGIN = 10
"""Samples kept beyond the image's borders, so that no layer can see where they are."""
FILTER_SIZE = 6
"""Filter taps for each factor of resampling."""
UPSAMPLING = 2
"""The factor by which the rate is raised around the leaky ReLU."""


@dataclass(frozen=True)
class Band:
    """The signal between two layers.

    Attributes:
        channels: number of feature maps.
        size: side of the feature maps, in samples, margins included.
        rate: sampling rate, in samples per image.
        cutoff: highest frequency that is kept, in cycles per image.
        half_width: half of the filter's transition band, in cycles per image.
    """

    channels: int
    size: int
    rate: int
    cutoff: float
    half_width: float


@dataclass(frozen=True)
class LayerPlan:
    """One layer: the signal it reads and the one it writes.

    Attributes:
        kernel: side of the convolution kernel.
        radial: whether the down-sampling filter is radially symmetric.
        to_image: the last layer, without resampling and activation.
    """

    name: str
    reads: Band
    writes: Band
    kernel: int
    radial: bool
    to_image: bool

    @property
    def inner_rate(self) -> int:
        """Sampling rate at which the leaky ReLU runs."""
        return max(self.reads.rate, self.writes.rate) * (1 if self.to_image else UPSAMPLING)

    @property
    def up(self) -> int:
        """Up-sampling factor before the leaky ReLU."""
        return self.inner_rate // self.reads.rate

    @property
    def down(self) -> int:
        """Down-sampling factor after the leaky ReLU."""
        return self.inner_rate // self.writes.rate

    @property
    def up_taps(self) -> int:
        return 1 if self.to_image else FILTER_SIZE * self.up

    @property
    def down_taps(self) -> int:
        return 1 if self.to_image else FILTER_SIZE * self.down

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros before and after the zero-stuffed signal, along each axis; negative crops.

        ``total = (out - 1) down + 1 - (in + k - 1) up + up_taps + down_taps - 2``, ``before = floor((total + up)/2)``.
        """
        total = (self.writes.size - 1) * self.down + 1 - (self.reads.size + self.kernel - 1) * self.up
        total += self.up_taps + self.down_taps - 2
        before = (total + self.up) // 2
        return before, total - before


def plan_layers(
    resolution: int,
    image_channels: int,
    *,
    channel_base: int,
    channel_max: int,
    kernel: int,
    radial: bool,
    layers: int = 14,
    critical: int = 2,
) -> tuple[LayerPlan, ...]:
    """The ``layers`` + 1 layers of a network for square images of ``resolution`` pixels, the last one to the image.

    Cut-offs and stop-bands grow geometrically from the first layer to the critically sampled ones at the end:
    ``cutoff_i = 2 (R/4)^e_i``, ``stop_i = 2^2.1 (2^0.3 R/2 / 2^2.1)^e_i``, ``e_i = min(i / (layers - critical), 1)``;
    ``rate_i = 2^ceil(log2(min(2 stop_i, R)))``; ``channels_i = rint(min(base/2 / cutoff_i, max))``.

    >>> [plan.name for plan in plan_layers(32, 3, channel_base=32768, channel_max=512, kernel=3, radial=False)][4:6]
    ['L4_36_512', 'L5_52_512']
    """
    last_cutoff = resolution / 2
    exponents = np.minimum(np.arange(layers + 1) / (layers - critical), 1)
    cutoffs = FIRST_CUTOFF * (last_cutoff / FIRST_CUTOFF) ** exponents
    stopbands = FIRST_STOPBAND * (last_cutoff * LAST_STOPBAND / FIRST_STOPBAND) ** exponents
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + MARGIN * 2
    sizes[-2:] = resolution
    channels = np.rint(np.minimum((channel_base / 2) / cutoffs, channel_max))
    channels[-1] = image_channels
    bands = [
        Band(int(channels[i]), int(sizes[i]), int(rates[i]), float(cutoffs[i]), float(half_widths[i]))
        for i in range(layers + 1)
    ]
    return tuple(
        LayerPlan(
            name=f"L{i}_{bands[i].size}_{bands[i].channels}",
            reads=bands[max(i - 1, 0)],
            writes=bands[i],
            kernel=1 if i == layers else kernel,
            radial=radial and i < layers - critical,
            to_image=i == layers,
        )
        for i in range(layers + 1)
    )

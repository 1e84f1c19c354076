"""Denoisers that an attacker may run on what it rebuilt; none of them knows the defense."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.errors import ConfigError, unknown_name

Picture = Float[np.ndarray, "c h w"]


def denoise(images: Float[Tensor, "n c h w"], name: str) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] after a denoiser of :data:`DENOISERS`, each on its own.

    Raises:
        ConfigError: for an unknown name, listing the valid ones.

    >>> denoise(torch.full((1, 1, 8, 8), 0.5), "total-variation").unique().tolist()
    [0.5]
    """
    if name not in DENOISERS:
        raise ConfigError(unknown_name("denoiser", name, DENOISERS))
    pictures = [DENOISERS[name](image) for image in images.detach().cpu().numpy().astype(np.float64)]
    return torch.from_numpy(np.stack(pictures)).to(images).clamp(0, 1)


def noise_level(picture: Picture) -> float:
    """The standard deviation of the noise in an image, if it is white and Gaussian.

    ``median |d| / 0.6745`` over the finest diagonal Haar details ``d = (a - b - c + e) / 2`` of all 2 x 2 blocks
    (Donoho and Johnstone 1994), averaged over channels. scikit-image's ``estimate_sigma`` is the same on a longer
    wavelet, and needs a package that nothing else here does.
    """
    even = picture[:, : picture.shape[1] // 2 * 2, : picture.shape[2] // 2 * 2]
    rows = even[:, ::2] - even[:, 1::2]
    details = (rows[:, :, ::2] - rows[:, :, 1::2]) / 2
    return float(np.mean(np.median(np.abs(details), axis=(1, 2))) / 0.6745)


def _total_variation(picture: Picture) -> Picture:
    from skimage.restoration import denoise_tv_chambolle

    # A weight for all smooths away what an attack rebuilt well.
    level = noise_level(picture)
    return denoise_tv_chambolle(picture, weight=level, channel_axis=0) if level else picture


def _non_local_means(picture: Picture) -> Picture:
    from skimage.restoration import denoise_nl_means

    level = noise_level(picture)
    if level == 0:
        # Its weights divide by the level.
        return picture
    # One channel is given as none: scikit-image (0.26) would lose its axis and give the picture back transposed.
    grey = len(picture) == 1
    # Its documentation's advice for the fast mode: h a little below the noise, patches of 5 pixels within 6.
    found: Picture = denoise_nl_means(
        picture[0] if grey else picture,
        patch_size=5,
        patch_distance=6,
        h=0.8 * level,
        sigma=level,
        fast_mode=True,
        channel_axis=None if grey else 0,
    )
    return found.reshape(picture.shape)


def _unchanged(picture: Picture) -> Picture:
    return picture


DENOISERS: dict[str, Callable[[Picture], Picture]] = {
    "none": _unchanged,
    "total-variation": _total_variation,
    "non-local-means": _non_local_means,
}

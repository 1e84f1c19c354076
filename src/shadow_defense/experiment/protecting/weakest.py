"""The weakest strength that meets a target, by what is linear on public images alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.linking import compared
from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.errors import ConfigError, shown
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.linkage import hits
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.protection.texture import Texture

LEAST, MOST, HALVINGS = 0.02, 20.0, 10
"""Strengths between which is searched, and how often the interval is halved: to a hundredth of itself."""

PROBES = 2000
"""Public images that are looked for at most, one draw each."""


def _above_mean(texture: Texture, public: Float[Tensor, "n c h w"], gallery: int) -> float:
    removed, mean = _removed(texture, public)
    return float((psnr(removed, public) - psnr(mean, public)).mean())


def _rdlv(texture: Texture, public: Float[Tensor, "n c h w"], gallery: int) -> float:
    removed, mean = _removed(texture, public)
    return float(relative_data_leakage(ssim(removed, public), ssim(mean, public)).nanmean())


def _removed(texture: Texture, public: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
    """The linear removal of each image, and the mean image in its place."""
    protected = texture.protect(public, drawn(0, "target", len(public)))
    removal = linear_removal(texture.whitening, [texture.view()])
    mean = texture.whitening.mean.unflatten(0, texture.whitening.shape)
    return removal.images([protected]), mean.expand_as(public)


def _linkage(texture: Texture, public: Float[Tensor, "n c h w"], gallery: int) -> float:
    """Each image is looked for among itself and those next to it, as many as will be protected."""
    size = max(2, min(gallery, len(public)))
    galleries = len(public) // size
    protected = texture.protect(public[: galleries * size], drawn(0, "target", galleries * size))
    seen, expected = compared(texture.whitening, texture.view(), protected, public[: galleries * size])
    probes = min(size, -(-PROBES // galleries))
    own = torch.arange(probes)
    found = [
        hits(-torch.cdist(some[:probes], among), own)
        for some, among in zip(seen.split(size), expected.split(size), strict=True)
    ]
    return float(torch.cat(found).mean())


LEAKS: dict[str, tuple[Callable[[Texture, Float[Tensor, "n c h w"], int], float], float]] = {
    "rdlv": (_rdlv, 10.0),
    "psnr": (_above_mean, 100.0),
    "linkage": (_linkage, 1.0),
}
"""What a target may bound, with the greatest number that makes sense: mean RDLV, mean dB of PSNR above the mean image,
rank-1 by likelihood in a gallery of as many public images as will be protected, or of all where that is more."""


@dataclass(frozen=True)
class Target:
    """The most that may be left of an image on average, by a measure of :data:`LEAKS`."""

    measure: str
    most: float

    def __str__(self) -> str:
        return f"{self.measure}={self.most:g}"


def parse_target(text: str) -> Target:
    """``rdlv=0.25``, ``psnr=+2`` or ``linkage=0.05``. Raises :class:`ConfigError` for anything else."""
    measure, _, number = text.partition("=")
    try:
        most = float(number)
    except ValueError:
        most = -1.0
    if measure not in LEAKS or not 0 < most < LEAKS[measure][1]:
        raise ConfigError(
            f"--target {shown(text)}: expected rdlv=NUMBER, psnr=+DECIBELS above the mean image or linkage=SHARE "
            "that is found first, as in rdlv=0.25, psnr=+2, linkage=0.05"
        )
    return Target(measure, most)


def weakest_strength(
    make: Callable[[float], Texture],
    public: Float[Tensor, "n c h w"],
    target: Target,
    gallery: int | None = None,
    least: float = LEAST,
) -> float:
    """The least strength at which no more than ``target`` is left of ``public``.

    Nothing of a private image has a part in it but how many there are, which is no secret: a strength that were fitted
    to them would tell of them.

    Args:
        gallery: images among which one is looked for; None: as many as ``public``.
        least: strengths below are not asked for.

    Raises:
        ConfigError: where no strength reaches it, saying what is reached.
    """
    leak, _ = LEAKS[target.measure]

    def leaked(strength: float) -> float:
        return leak(make(strength), public, gallery or len(public))

    if leaked(least) <= target.most:
        return least
    reached = leaked(MOST)
    if reached > target.most:
        raise ConfigError(
            f"--target {target} is not reached: the strongest noise leaves {reached:.3f}; give a higher one, or a "
            "strength (--set strength=NUMBER)"
        )
    low, high = least, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if leaked(middle) <= target.most else (middle, high)
    # Four digits, upwards, so that what is written meets the target too.
    return float(f"{high * 1.0005:.4g}")

"""The weakest strength that meets a target, by what is linear on public images alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.linking import likelihoods
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.worst_case import scores
from shadow_defense.errors import ConfigError, shown
from shadow_defense.metrics.linkage import hits
from shadow_defense.protection.texture import Texture

LEAST, MOST, HALVINGS = 0.02, 20.0, 10
"""Strengths between which is searched, and how often the interval is halved: to a hundredth of itself."""

PROBES = 500
"""Public images that are looked for among all of them."""


def _fidelity(texture: Texture, public: Float[Tensor, "n c h w"], metric: str) -> tuple[float, float]:
    """Means over the linear removal of all images, and over the mean image in its place."""
    protected = texture.protect(public, drawn(0, "target", len(public)))
    estimates = LinearRemover(texture.whitening, texture.view()).removal.images([protected])
    mean = texture.whitening.mean.unflatten(0, texture.whitening.shape)
    removed, anybody = (
        float(scores(each, public, mean)[metric].nanmean()) for each in (estimates, mean.expand_as(public))
    )
    return removed, anybody


def _rdlv(texture: Texture, public: Float[Tensor, "n c h w"]) -> float:
    return _fidelity(texture, public, "rdlv")[0]


def _above_mean(texture: Texture, public: Float[Tensor, "n c h w"]) -> float:
    removed, anybody = _fidelity(texture, public, "psnr")
    return removed - anybody


def _linkage(texture: Texture, public: Float[Tensor, "n c h w"]) -> float:
    probes = public[:PROBES]
    protected = texture.protect(probes, drawn(0, "target", len(probes)))
    similarity = likelihoods(texture.whitening, texture.view(), protected, public)
    return float(hits(similarity, torch.arange(len(probes))).mean())


LEAKS: dict[str, tuple[Callable[[Texture, Float[Tensor, "n c h w"]], float], float]] = {
    "rdlv": (_rdlv, 10.0),
    "psnr": (_above_mean, 100.0),
    "linkage": (_linkage, 1.0),
}
"""What a target may bound, with the greatest number that makes sense: mean RDLV, mean dB of PSNR above the mean image,
rank-1 by likelihood among the public images."""


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


def weakest_strength(make: Callable[[float], Texture], public: Float[Tensor, "n c h w"], target: Target) -> float:
    """The least strength at which no more than ``target`` is left of ``public``.

    Nothing of a private image has a part in it: a strength that were fitted to them would tell of them.

    Raises:
        ConfigError: where no strength reaches it, saying what is reached.
    """
    leak, _ = LEAKS[target.measure]

    def leaked(strength: float) -> float:
        return leak(make(strength), public)

    reached = leaked(MOST)
    if reached > target.most:
        raise ConfigError(
            f"--target {target} is not reached: the strongest noise leaves {reached:.3f}; give a higher one"
        )
    if leaked(LEAST) <= target.most:
        return LEAST
    low, high = LEAST, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if leaked(middle) <= target.most else (middle, high)
    # Four digits, upwards, so that what is written meets the target too.
    return float(f"{high * 1.0005:.4g}")

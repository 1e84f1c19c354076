"""The weakest strength that meets a target, by what is linear on public images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.linking import compared
from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.errors import ConfigError
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.limit import Limit, parse_limit
from shadow_defense.metrics.linkage import hits
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.protection.texture import Texture

LEAST, MOST, HALVINGS = 0.02, 20.0, 10
"""Strengths between which is searched, and how often the interval is halved: to a hundredth of itself."""

PROBES = 2000
"""Public images that are looked for at most, one draw each."""


Looks = Sequence[Texture]
"""Textures under which an attacker sees the same images, each by draws of its own; the last is the one to choose."""


def _above_mean(looks: Looks, public: Float[Tensor, "n c h w"], gallery: int) -> float:
    removed, mean = _removed(looks, public)
    return float((psnr(removed, public) - psnr(mean, public)).mean())


def _rdlv(looks: Looks, public: Float[Tensor, "n c h w"], gallery: int) -> float:
    removed, mean = _removed(looks, public)
    return float(relative_data_leakage(ssim(removed, public), ssim(mean, public)).nanmean())


def _seen(looks: Looks, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
    last = len(looks) - 1
    return [
        look.protect(images, drawn(0, "target" if place == last else f"target, look {place}", len(images)))
        for place, look in enumerate(looks)
    ]


def _removed(looks: Looks, public: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
    """The linear removal of each image, and the mean image in its place."""
    whitening = looks[-1].whitening
    removal = linear_removal(whitening, [look.view() for look in looks])
    mean = whitening.mean.unflatten(0, whitening.shape)
    return removal.images(_seen(looks, public)), mean.expand_as(public)


def _linkage(looks: Looks, public: Float[Tensor, "n c h w"], gallery: int) -> float:
    """Each image is looked for among itself and those next to it, as many as will be protected."""
    size = max(2, min(gallery, len(public)))
    galleries = len(public) // size
    images = public[: galleries * size]
    whitening = looks[-1].whitening
    seen, expected = compared(whitening, list(zip(looks, _seen(looks, images), strict=True)), images)
    probes = min(size, -(-PROBES // galleries))
    own = torch.arange(probes)
    found = [
        hits(-torch.cdist(some[:probes], among), own)
        for some, among in zip(seen.split(size), expected.split(size), strict=True)
    ]
    return float(torch.cat(found).mean())


LEAKS: dict[str, tuple[Callable[[Looks, Float[Tensor, "n c h w"], int], float], float]] = {
    "rdlv": (_rdlv, 10.0),
    "psnr": (_above_mean, 100.0),
    "linkage": (_linkage, 1.0),
}
"""What a target may bound, with the greatest number that makes sense: mean RDLV, mean dB of PSNR above the mean image,
rank-1 by likelihood in a gallery of as many public images as will be protected, or of all where that is more."""


def parse_target(text: str) -> Limit:
    """``rdlv=0.25``, ``psnr=+2`` or ``linkage=0.05``. Raises :class:`ConfigError` for anything else."""
    ranges = {measure: (0.0, most) for measure, (_, most) in LEAKS.items()}
    return parse_limit(
        text, ranges, "--target", "rdlv=0.25, psnr=+2 (dB above the mean image) or linkage=0.05 (found first)"
    )


def weakest_strength(
    make: Callable[[float], Texture],
    public: Float[Tensor, "n c h w"],
    target: Limit,
    gallery: int | None = None,
    least: float = LEAST,
    earlier: Looks = (),
) -> float:
    """The least strength at which no more than ``target`` is left of ``public``.

    Nothing of a private image has a part in it but how many there are, which is no secret: a strength that were fitted
    to them would tell of them.

    Args:
        gallery: images among which one is looked for; None: as many as ``public``.
        least: strengths below are not asked for.
        earlier: other looks at the same images that the attacker has had.

    Raises:
        ConfigError: where no strength reaches it, saying what is reached.
    """
    leak, _ = LEAKS[target.metric]

    def leaked(strength: float) -> float:
        return leak([*earlier, make(strength)], public, gallery or len(public))

    if leaked(least) <= target.value:
        return least
    reached = leaked(MOST)
    if reached > target.value:
        looked = " with the earlier protection, of which the attacker has seen something too" if earlier else ""
        raise ConfigError(
            f"--target {target} is not reached: the strongest noise leaves {reached:.3f}{looked}; give a higher one, "
            "or a strength (--set strength=NUMBER)"
        )
    low, high = least, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if leaked(middle) <= target.value else (middle, high)
    # Four digits, upwards, so that what is written meets the target too.
    return float(f"{high * 1.0005:.4g}")

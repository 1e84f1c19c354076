"""The weakest strength that meets a target, by the linear remover on public images alone."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.worst_case import scores
from shadow_defense.errors import ConfigError
from shadow_defense.protection.texture import Texture

LEAST, MOST, HALVINGS = 0.02, 20.0, 10
"""Strengths between which is searched, and how often the interval is halved: to a hundredth of itself."""


def parse_target(text: str) -> float:
    """The number of ``rdlv=NUMBER``. Raises :class:`ConfigError` for anything else."""
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if name != "rdlv" or not 0 < value < 10:
        raise ConfigError(f"--target {text}: expected rdlv=NUMBER with a number above 0, as in rdlv=0.25")
    return value


def weakest_strength(make: Callable[[float], Texture], public: Float[Tensor, "n c h w"], target: float) -> float:
    """The least strength at which the mean RDLV of the linear removal of ``public`` is at most ``target``.

    Nothing of a private image has a part in it: a strength that were fitted to them would tell of them.

    Raises:
        ConfigError: where no strength reaches it, saying what is reached.
    """

    def leaked(strength: float) -> float:
        texture = make(strength)
        protected = texture.protect(public, drawn(0, "target", len(public)))
        estimates = LinearRemover(texture.whitening, texture.view()).removal.images([protected])
        mean = texture.whitening.mean.unflatten(0, texture.whitening.shape)
        return float(scores(estimates, public, mean)["rdlv"].nanmean())

    reached = leaked(MOST)
    if reached > target:
        raise ConfigError(
            f"--target rdlv={target:g} is not reached: the strongest noise leaves {reached:.3f}; give a higher one"
        )
    if leaked(LEAST) <= target:
        return LEAST
    low, high = LEAST, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if leaked(middle) <= target else (middle, high)
    # Three digits, upwards, so that what is written meets the target too.
    return float(f"{high * 1.0005:.4g}")

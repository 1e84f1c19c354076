"""Local differential privacy of the update: clipped as a whole, then Gaussian noise that is calibrated to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from shadow_defense.defenses.base import Batch, ParameterDefense, RoundContext
from shadow_defense.defenses.clipping import clip_factor, clip_global, global_norm
from shadow_defense.defenses.gaussian_mechanism import analytic_sigma, classic_sigma, gaussian_epsilon
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.noise import add_gaussian
from shadow_defense.errors import ConfigError
from shadow_defense.seeds import named_generator


class LocalDPSettings(BaseModel):
    """The privacy of one round's update, and what it is calibrated to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(1.0, gt=0, description="of each round; the rounds together spend more")
    delta: float = Field(1e-5, gt=0, lt=1, description="of each round, and of what is reported for all rounds so far")
    clip: float = Field(1.0, gt=0, description="C, largest L2 norm of the update's parameters")
    sensitivity: float | None = Field(
        None,
        gt=0,
        description="S; null: 2 C, any update against any other. Less makes less noise, and the epsilon that is "
        "reported, always for 2 C, grows beyond the one asked for",
    )
    calibration: Literal["classic", "analytic"] = Field(
        "classic", description="classic: sqrt(2 ln(1.25 / delta)) S / epsilon, up to epsilon 1; analytic: exact, any"
    )

    @model_validator(mode="after")
    def _proved(self) -> LocalDPSettings:
        if self.calibration == "classic" and self.epsilon > 1:
            raise ConfigError(
                f"local-dp.epsilon = {self.epsilon}: the classic calibration is proved up to 1 only; "
                "set calibration: analytic or a smaller epsilon"
            )
        return self

    def sigma(self) -> float:
        """The noise's standard deviation on every parameter, in units of the update."""
        calibrate = classic_sigma if self.calibration == "classic" else analytic_sigma
        return calibrate(self.sensitivity or 2 * self.clip, self.epsilon, self.delta)


LOCAL_DP_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: a guarantee in name only, which still drowns the update of one client.
    "weak": {"epsilon": 1000.0, "calibration": "analytic"},
    # The literature leaves C, S and epsilon free (Flower's LocalDpMod): the largest epsilon of
    # the classic formula, with the clip and delta of DP-SGD. What the Shadow Defense paper used is unknown.
    "paper": {},
    "strong": {"epsilon": 0.1},
}


def privatise(tensors: Mapping[str, Tensor], clip: float, sigma: float, draws: torch.Generator) -> dict[str, Tensor]:
    """``Delta * min(1, C / ||Delta||) + N(0, sigma^2)`` (docs/defenses.md), the norm over all tensors.

    Args:
        clip: C; infinity clips nothing.
        sigma: standard deviation in the tensors' units.
    """
    return add_gaussian(clip_global(tensors, clip), sigma, draws)


class LocalDPDefense(ParameterDefense):
    """Clip, add noise, and count the privacy spent over all rounds.

    The guarantee is that of the parameters sent, each client's whole data against any other (replace-one). It does
    not cover what leaves beside them: batch-norm buffers and the number of images.

    Args:
        seed: the client's own. In a deployment it is a secret of the client's: it reproduces the noise.
    """

    def __init__(self, settings: LocalDPSettings, seed: int) -> None:
        super().__init__("update")
        self.settings = settings
        self.seed = seed
        self.sigma = settings.sigma()
        self._releases = 0
        self._norm = 0.0

    def protect(self, tensors: Mapping[str, Tensor], batch: Batch | None, context: RoundContext) -> dict[str, Tensor]:
        self._norm = global_norm(tensors)
        self._releases += 1
        return privatise(
            tensors, self.settings.clip, self.sigma, named_generator(self.seed, "local dp", context.round, self.step)
        )

    def measurements(self) -> dict[str, float]:
        """``epsilon_spent`` in all rounds so far at the settings' delta, sigma, and the update's norm before clipping.

        The rounds compose exactly, as one Gaussian release of sensitivity 2 C sqrt(rounds)
        (:mod:`shadow_defense.defenses.gaussian_mechanism`).
        """
        spent = gaussian_epsilon(2 * self.settings.clip * math.sqrt(self._releases) / self.sigma, self.settings.delta)
        clipped = clip_factor(self._norm, self.settings.clip) < 1
        return {"epsilon_spent": spent, "sigma": self.sigma, "norm": self._norm, "clipped_share": float(clipped)}

    def state_dict(self) -> dict[str, Any]:
        return {"releases": torch.tensor(self._releases)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._releases = int(state["releases"])


LOCAL_DP = DefenseKind(
    "local-dp",
    "update clipped, then Gaussian noise: local differential privacy, epsilon reported",
    LocalDPSettings,
    lambda settings, resources: LocalDPDefense(settings, resources.seed_of("local-dp")),
    LOCAL_DP_PRESETS,
    acts_on=("update",),
    reads="nothing",
    private_at="update",
)

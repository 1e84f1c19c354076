"""What an attacker that knows the defense does with it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AdaptiveSettings(BaseModel):
    """How an attack is fitted to the defense it faces; each part can be switched off, to see what it is worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    matching: bool = Field(True, description="fit the matching term to the defense")
    rounds: int = Field(
        1,
        ge=1,
        le=100_000,
        description="rounds used, the attacked one included; the reconstructions of all are averaged",
    )
    draws: int = Field(
        4,
        ge=1,
        le=1024,
        description="simulations that the update is averaged over where the defense is a random part of the model "
        "(precode), at so many times the cost",
    )
    subtract_noise: bool = Field(
        True, description="of a defense that adds noise to images: subtract what it is expected to add"
    )
    denoiser: Literal["none", "total-variation", "non-local-means", "learned"] = Field(
        "none",
        description="what is run over the reconstructed images at the end. learned: a remover trained on public images "
        "that a copy of the defense protected, in place of subtracting; total variation where no noise lies on images",
    )

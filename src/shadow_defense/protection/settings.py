"""Which texture, and how strong."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TextureName = Literal["white", "covariance", "task", "features", "decoy"]


class TextureSettings(BaseModel):
    """What is drawn over an image, or in place of it (docs/protect.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texture: TextureName = Field("features", description="what is drawn over the image, or in place of it")
    strength: float = Field(
        1.0, gt=0, le=100, description="of the noise: white on the scale of [0, 1], else in the images' own deviations"
    )
    floor: float = Field(0.0, ge=0, le=10, description="white noise on top, on the scale of [0, 1]; not of white")
    directions: int = Field(4, ge=1, le=1024, description="task, features: how many directions are spared, or features")
    share: float = Field(0.7, gt=0, lt=1, description="decoy: share of the image that is replaced")

    @property
    def spares(self) -> bool:
        """Whether it keeps what a classifier tells is needed, so that it asks for one, or for labels."""
        return self.texture in ("task", "features")

    def drawing(self) -> dict[str, object]:
        """What has a part in x', as JSON holds it."""
        return self.model_dump(mode="json", include=set(TextureSettings.model_fields))

"""What a user may say about the task model; every field with its range."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NormalisationKind = Literal["batch", "group", "none"]
Activation = Literal["relu", "gelu"]
LossName = Literal["ce", "bce", "mse"]

SMALL_STEM_BELOW = 96
"""Pixels of the shorter side below which ``stem: auto`` takes the small stem: the ImageNet stem shrinks an
image by four before the first block, which leaves 24 px of 96."""


class ModelSettings(BaseModel):
    """Which task model the clients train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("resnet18", description="name of a model: of the registry, or module:Name of another package")
    options: dict[str, Any] = Field({}, description="settings of a model of another package")
    normalisation: NormalisationKind = Field(
        "group",
        description="batch: as published, needed for ImageNet weights; group: no running statistics that leave "
        "the client; none: convnet and lenet only (lenet has no other)",
    )
    stem: Literal["auto", "small", "imagenet"] = Field(
        "auto",
        description="first layers of resnet18 and densenet121. small: 3x3 convolution, stride 1, no pooling; "
        "imagenet: 7x7 convolution, stride 2, max pooling; auto: small where a side is below 96 pixels",
    )
    weights: Path | None = Field(
        None, description="ImageNet weights of resnet18 or densenet121: torchvision's .pth, or .safetensors"
    )
    start: Path | None = Field(
        None, description="state of this very model to start from (.safetensors), such as a run's global model"
    )
    width: int = Field(64, ge=8, le=1024, multiple_of=8, description="channels of convnet's first layer")

    activation: Activation = Field(
        "relu", description="of convnet; gelu is smooth, so gradients say more about the image: it leaks more"
    )

    imprint: int | None = Field(
        None,
        ge=2,
        le=4096,
        description="what a malicious server does: a layer in front of the model that sorts images into so many bins "
        "and gives them away (attack robbing-the-fed); twice a batch's images or more; null: an honest server",
    )

    def has_small_stem(self, image_size: tuple[int, int]) -> bool:
        """Whether a model for images of (height, width) pixels gets the small stem.

        >>> [ModelSettings().has_small_stem((side, 224)) for side in (32, 96)]
        [True, False]
        """
        return self.stem == "small" or (self.stem == "auto" and min(image_size) < SMALL_STEM_BELOW)

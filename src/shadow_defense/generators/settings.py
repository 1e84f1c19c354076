"""What a user may say about the shadow generator and its pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class GeneratorSettings(BaseModel):
    """The generator that shadows the attacker, and how it is trained on public images.

    Where null stands for the architecture's recipe, recipe.py has the values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("dcgan", description="architecture; the valid names are those of the registry")
    options: dict[str, Any] = Field({}, description="settings of a generator of another package")
    path: Path | None = Field(None, description="a generator already trained (safetensors); null trains one")
    begin_from: Path | None = Field(
        None, description="a generator (safetensors) of the same architecture to fine-tune; null begins at random"
    )
    begin_from_discriminator: Path | None = Field(
        None, description="its discriminator (safetensors), as import-snapshot writes it; null begins at random"
    )
    image_size: int | None = Field(
        None, ge=8, le=1024, description="side in pixels; null takes the least that covers the images"
    )
    z_dim: int | None = Field(None, ge=1, le=4096, description="length of a latent code; null: the architecture's")
    width: int | None = Field(
        None, ge=4, le=512, description="DCGAN: channels of the widest-resolution layer; null: 32"
    )
    steps: int = Field(
        2000, ge=0, le=10_000_000, description="training steps of the GAN; 0 leaves the generator untrained"
    )
    batch_size: int = Field(32, ge=2, le=4096, description="real and fake images a step")
    learning_rate: float | None = Field(None, gt=0, description="Adam's, for the generator; null: the recipe's")
    discriminator_learning_rate: float | None = Field(
        None, gt=0, description="Adam's, for the discriminator; null: learning_rate where given, else the recipe's"
    )
    r1_gamma: float | None = Field(
        None, ge=0, description="weight of the gradient penalty at real images; null: the recipe's for the size"
    )
    r1_every: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="steps between penalties, whose weight is scaled up to match; null: the recipe's",
    )
    average_half_life: float | None = Field(
        None, gt=0, description="half-life of the weights' moving average, in images; null: the recipe's"
    )
    augmentation: Literal["none", "fixed", "adaptive"] = Field(
        "none", description="of what the discriminator sees, for small sets: never, with one probability, or ADA"
    )
    augmentation_probability: float = Field(
        0.0, ge=0, le=1, description="of each operation: constant where fixed, at the start where adaptive"
    )
    save_every: int = Field(250, ge=1, le=1_000_000, description="steps between checkpoints and sample grids")
    patience: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="stop where, in so many checkpoints, images came no nearer to an eighth of the public ones that is "
        "held out for it, and keep the nearest weights; null: all steps, on all public images",
    )

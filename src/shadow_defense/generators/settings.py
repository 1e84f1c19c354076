"""What a user may say about the shadow generator and its pre-training."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class GeneratorSettings(BaseModel):
    """The generator that shadows the attacker, and how it is trained on public images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("dcgan", description="architecture; the valid names are those of the registry")
    path: Path | None = Field(None, description="a generator already trained (safetensors); null trains one")
    image_size: int | None = Field(None, description="side in pixels; null takes the least that covers the images")
    z_dim: int = Field(256, ge=1, le=4096, description="length of a latent code")
    width: int = Field(32, ge=4, le=512, description="channels of the widest-resolution layer")
    steps: int = Field(2000, ge=0, description="training steps of the GAN; 0 leaves the generator untrained")
    batch_size: int = Field(32, ge=2, description="real and fake images a step")
    learning_rate: float = Field(2e-4, gt=0, description="Adam's, for generator and discriminator")
    r1_gamma: float = Field(0.1, ge=0, description="weight of the gradient penalty at real images")
    r1_every: int = Field(8, ge=1, description="steps between penalties; the weight is scaled up to match")
    average_half_life: float = Field(500.0, gt=0, description="half-life of the weights' moving average, in images")
    save_every: int = Field(250, ge=1, description="steps between checkpoints and sample grids")

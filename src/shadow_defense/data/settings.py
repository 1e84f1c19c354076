"""What a user may say about the data; every field with its range."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SplitSettings(BaseModel):
    """How the images are dealt to the clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["paper", "sizes", "iid", "dirichlet", "patient", "given"] = Field(
        "paper",
        description="paper: the nine clients of the paper, shrunk in proportion where the set is small; sizes: "
        "one client for each entry of `sizes`; iid: equal random shares; dirichlet: label skew; patient: equal "
        "shares, no patient at two clients; given: the client column of the manifest",
    )
    clients: int = Field(9, ge=1, description="number of clients, for iid, dirichlet and patient")
    sizes: tuple[int, ...] | None = Field(None, description="training images of each client, for sizes")
    batch_sizes: tuple[int, ...] | None = Field(
        None, description="batch size of each client; default 4 for iid, dirichlet, patient, given and sizes"
    )
    alpha: float = Field(0.5, gt=0, description="concentration of dirichlet: small values skew the labels more")


class DataSettings(BaseModel):
    """Where the images come from and how they are prepared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("faces", description="name of an image source; `shadow-defense data list` prints them")
    path: Path | None = Field(None, description="file or folder, for sources that read one")
    image_size: int | None = Field(32, ge=8, le=1024, description="side in pixels; null keeps the images' own")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; null keeps the images' own")
    classes: tuple[str, ...] | None = Field(None, description="class names in label order, where files don't tell")
    limit: int | None = Field(None, ge=4, description="use at most this many training images, for a quick look")
    images: int = Field(400, ge=8, le=100_000, description="number of images, for the phantom sources")
    split: SplitSettings = SplitSettings()
    public_fraction: float = Field(
        0.3, ge=0, lt=1, description="share of the training images set aside as public, for the shadow generator"
    )
    public_source: str | None = Field(None, description="source of the public images, where it is another data set")
    public_path: Path | None = Field(None, description="path of the public images")
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the training images for validation, where the source has no such part"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of all images for the test, where the source has no such part"
    )
    mean: tuple[float, ...] | None = Field(None, description="per-channel mean; null measures it on the public part")
    std: tuple[float, ...] | None = Field(None, description="per-channel deviation; null measures it")

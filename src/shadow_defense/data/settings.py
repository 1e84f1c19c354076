"""What a user may say about the data; every field with its range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shadow_defense.data.boundary import CLASSES

# What no data set needs and what would fill the memory.
MOST_CLIENTS = 10_000
MOST_IMAGES = 10_000_000

ClientImages = Annotated[int, Field(ge=1, le=MOST_IMAGES)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Of pixels in [0, 1]; far beyond, sums of normalised pixels overflow.
PixelStatistic = Annotated[float, Field(ge=-1000, le=1000)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"expected the black value first and the white above it, in place of {list(ends)}")
    return ends


class SplitSettings(BaseModel):
    """How the images are dealt to the clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["paper", "sizes", "iid", "dirichlet", "patient", "given"] = Field(
        "paper",
        description="paper: the nine clients of the paper, shrunk in proportion where the set is small; sizes: "
        "one client for each entry of `sizes`; both keep a known patient's images at one client; iid: equal random "
        "shares; dirichlet: label skew; patient: equal shares, no patient at two clients; given: the client column "
        "of the manifest",
    )
    clients: int = Field(9, ge=1, le=MOST_CLIENTS, description="number of clients, for iid, dirichlet and patient")
    sizes: tuple[ClientImages, ...] | None = Field(
        None, max_length=MOST_CLIENTS, description="training images of each client, for sizes"
    )
    batch_sizes: tuple[ClientImages, ...] | None = Field(
        None,
        max_length=MOST_CLIENTS,
        description="batch size of each client; default 4 for iid, dirichlet, patient, given and sizes",
    )
    alpha: float = Field(
        0.5, ge=0.001, le=1e6, description="concentration of dirichlet: small values skew the labels more"
    )


class DataSettings(BaseModel):
    """Where the images come from and how they are prepared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("faces", description="name of an image source; `shadow-defense data list` prints them")
    path: Path | None = Field(None, description="file or folder, for sources that read one")
    options: dict[str, Any] = Field({}, description="settings of a source of another package")
    image_size: int | None = Field(32, ge=8, le=1024, description="side in pixels; null keeps the images' own")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; null keeps the images' own")
    classes: tuple[str, ...] | None = Field(
        None, max_length=CLASSES, description="class names in label order, where files don't tell"
    )
    joined: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="classes that count as one, by their new names, such as {healthy: [grade 0, grade 1], "
        "referable: [grade 2, grade 3, grade 4]}; each class in one; null: as they are",
    )
    grey_range: Annotated[tuple[Finite, Finite], AfterValidator(_ascending)] | None = Field(
        None,
        description="grey values of the files that become black and white, such as [0, 4095] for 12 bits in a PNG of "
        "16, or [-160, 240] HU for a CT; null: the range of the file's bits, or the window of its DICOM header",
    )
    limit: int | None = Field(
        None, ge=4, le=MOST_IMAGES, description="use at most this many training images, for a quick look"
    )
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
    mean: tuple[PixelStatistic, ...] | None = Field(
        None, max_length=3, description="per-channel mean; null measures it on the public part"
    )
    std: tuple[PixelStatistic, ...] | None = Field(
        None, max_length=3, description="per-channel deviation; null measures it"
    )

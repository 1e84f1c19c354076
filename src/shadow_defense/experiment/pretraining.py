"""Training a generator on public images, apart from any run: `shadow-defense pretrain --generator ... --data ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.config import apply_overrides
from shadow_defense.data.public import read_public_images
from shadow_defense.devices import DEVICE_MEANING, DeviceName, resolved_device
from shadow_defense.errors import ConfigError, GeneratorError
from shadow_defense.files import is_empty, write_text
from shadow_defense.generators.build import architecture, load_generator
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.training import pretrain
from shadow_defense.plain_yaml import as_mapping, read_yaml
from shadow_defense.progress import Progress
from shadow_defense.validation import validated


class PretrainSettings(BaseModel):
    """A training of a generator: the images and the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(description="a folder of images, an .npz in the MedMNIST layout, or a named source")
    image_size: int | None = Field(
        None, ge=8, le=1024, description="side to which the images are resized, in pixels; null: the generator's, or 32"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; null keeps the images' own")
    limit: int | None = Field(None, ge=2, le=1_000_000_000, description="use at most this many images")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="every random draw derives from it")
    device: DeviceName = Field("auto", description=DEVICE_MEANING)
    generator: GeneratorSettings = GeneratorSettings()


def pretrain_settings(data: str, generator: str, overrides: Sequence[str]) -> PretrainSettings:
    """Settings from the command line; ``overrides`` are ``key=value``, such as ``generator.steps=4000``."""
    path = Path(data)
    values: dict[str, Any] = {
        "data": str(path.resolve()) if path.exists() else data,
        "generator": {"name": generator},
    }
    apply_overrides(values, overrides)
    settings = validated(PretrainSettings, values, ConfigError)
    architecture(settings.generator.name)
    if settings.generator.path is not None:
        raise ConfigError("generator.path names a finished generator: give generator.begin_from to fine-tune one")
    size = settings.generator.image_size
    if settings.generator.begin_from is not None:
        size = load_generator(settings.generator.begin_from).image_size
    if settings.image_size is None:
        return settings.model_copy(update={"image_size": size or 32})
    if size is not None and settings.image_size < size:
        raise ConfigError(
            f"image_size={settings.image_size} is less than the generator's {size} px: leave it out, or give {size}"
        )
    return settings


def pretrain_alone(settings: PretrainSettings, folder: Path, progress: Progress | None = None) -> Path:
    """Train, or go on where the same training in ``folder`` stopped; returns the generator's file.

    More ``generator.steps`` than before make a finished training go on; any other change is refused.

    Raises:
        GeneratorError: when the folder holds another training.
        DataError: when the images can't be read.
    """
    written = folder / "pretrain.yaml"
    if folder.exists() and (not folder.is_dir() or (not is_empty(folder) and not written.exists())):
        raise GeneratorError(f"{folder} exists and is no pre-training: choose another folder with --out")
    if written.exists():
        earlier = _read(written)
        if (folder / "checkpoint.safetensors").exists() and _without_steps(earlier) != _without_steps(settings):
            raise GeneratorError(f"{folder} holds a training with other settings: choose another folder with --out")
    images = read_public_images(
        settings.data,
        image_size=settings.image_size,
        channels=settings.channels,
        limit=settings.limit,
        seed=settings.seed,
    ).images
    write_text(written, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    device = resolved_device(settings.device)
    pretrain(settings.generator, images, seed=settings.seed, folder=folder, progress=progress, device=device)
    return folder / "generator.safetensors"


def _read(path: Path) -> PretrainSettings:
    try:
        values = as_mapping(read_yaml(path), str(path))
        return validated(PretrainSettings, values, ConfigError, str(path))
    except ConfigError as error:
        raise GeneratorError(f"{error}; delete the folder") from error


def _without_steps(settings: PretrainSettings) -> PretrainSettings:
    return settings.model_copy(update={"generator": settings.generator.model_copy(update={"steps": 0})})

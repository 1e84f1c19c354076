"""The networks that a texture may be made with: a generator of decoys, a model that tells the task's directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.config import load_config
from shadow_defense.errors import ConfigError, GeneratorError, shown
from shadow_defense.experiment.audit.images import normalisation_of
from shadow_defense.federated.states import digest
from shadow_defense.generators.build import load_generator
from shadow_defense.generators.interface import Generator
from shadow_defense.models.build import build_model
from shadow_defense.protection.directions import Classifier
from shadow_defense.protection.settings import TextureSettings
from shadow_defense.report.kit.formatting import counted

MODEL_TELLS = (
    "What is kept was told by a model that was given. Whoever has it, as every server of a federation has its global "
    "model, knows what it and its updates tell of the images that it was trained on. Where these are among the "
    "protected ones, and were trained on as they are, that comes on top of every number here and is in none of them."
)

MODEL_COUNTED = (
    "What is kept was told by a model that was trained on an earlier protection of these images. What is said here is "
    "of both: the attacker was handed the earlier protected images too."
)


@dataclass(frozen=True)
class Networks:
    """Both as far as they were given; the attacker has them too."""

    generator: Generator | None = None
    classifier: Classifier | None = None

    def marks(self) -> dict[str, str | None]:
        """A hash of the state of each; None for one that was not given."""
        return {
            "generator": None if self.generator is None else digest(self.generator.state_dict()),
            "model": None if self.classifier is None else digest(self.classifier.model.state_dict()),
        }

    def notes(self, counted_in: bool = False) -> tuple[str, ...]:
        """What they mean for a certificate.

        Args:
            counted_in: whether the audit has what the model was trained on.
        """
        return () if self.classifier is None else (MODEL_COUNTED if counted_in else MODEL_TELLS,)


NONE = Networks()


def check_networks(networks: Networks, settings: TextureSettings, shape: tuple[int, ...]) -> None:
    """Raise where a texture has no use for a network, or a generator makes images of another (channels, height, width).

    Raises:
        ConfigError: for the first.
        GeneratorError: for the second.
    """
    generator = networks.generator
    if generator is not None and settings.texture != "decoy":
        raise ConfigError(f"--generator makes decoys, and texture {settings.texture} has none: add --preset decoy")
    if networks.classifier is not None and not settings.spares:
        raise ConfigError(
            f"--model tells what the diagnosis needs, and texture {settings.texture} spares nothing: leave it out"
        )
    if generator is not None and (generator.channels, generator.image_size, generator.image_size) != shape:
        raise GeneratorError(
            f"the generator makes images of {generator.image_size} x {generator.image_size} pixels in "
            f"{counted(generator.channels, 'channel')}, those to protect have {shape[1]} x {shape[2]} in {shape[0]}: "
            "give one of their size, or bring them to its own with --image-size"
        )


def read_networks(
    generator: Path | None, model: str | None, public: UInt8[Tensor, "n c h w"], classes: int, device: torch.device
) -> Networks:
    """Those of a command.

    Args:
        generator: as `pretrain` writes it.
        model: package.module:factory, a model's file, or a YAML file whose ``model`` has its weights as ``start``;
            images are normalised by its ``data.mean`` and ``data.std``, else by those of the public images.
        classes: of the images to protect, as many as the model tells apart.
        device: where the model computes.

    Raises:
        GeneratorError, ModelError, ConfigError: for what cannot be read or run.
    """
    return Networks(
        None if generator is None else load_generator(generator),
        None if model is None else _classifier(model, public, classes, device),
    )


def _classifier(model: str, public: UInt8[Tensor, "n c h w"], classes: int, device: torch.device) -> Classifier:
    config = load_config(model)
    channels, height, width = public.shape[1:]
    if config.model.start is None and model.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"--model {shown(model)} names no weights: give its `model` a `start`, the file of its state dict"
        )
    built = build_model(config.model, channels=channels, classes=classes, image_size=(height, width), seed=config.seed)
    return Classifier(built.to(device).eval(), normalisation_of(config.data, public, channels))

"""What a scene cannot do, said before anything is computed; no result depends on it."""

from __future__ import annotations

from pathlib import Path

import torch

from shadow_defense.errors import GeneratorError, ModelError
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.pretraining import load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.batch_norm_policy import check_public_images, lacks_statistics
from shadow_defense.federated.client import one_value_explained
from shadow_defense.generators.build import architecture, load_generator
from shadow_defense.metrics.lpips import load_lpips
from shadow_defense.models.class_activation import find_cam_layer

CHECKING = "checking images, models and defenses"
"""What is said meanwhile: thousands of files take a minute to read, and textures are measured on public images."""


def check_scene(scene: Scene) -> None:
    """Raise now what a later stage would raise after hours: the model, the attacked clients, the weights of LPIPS."""
    for name, arm in scene.config.arms.items():
        if lacks_statistics(scene.new_model(name), arm.share_bn, scene.config.training.batch_norm):
            check_public_images(scene.dataset.public.images, arm.share_bn)
    _check_single_images(scene)
    for attack in scene.config.attacks:
        scene.attacked_updates(attack)
    _check_latent_spaces(scene)
    _check_foregrounds(scene)
    metrics = scene.config.metrics
    if metrics.lpips:
        load_lpips(metrics.lpips, metrics.lpips_weights)


def _check_single_images(scene: Scene) -> None:
    """Where a batch is of one image, batch norm in train mode needs more than a pixel of it in each layer."""
    data, sizes = scene.dataset, {(len(client.train), client.batch_size) for client in scene.dataset.clients}
    if scene.config.training.batch_norm == "train" and any(1 in (batch, images % batch) for images, batch in sizes):
        model = scene.new_model(scene.reference).train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), one_value_explained():
            model(torch.zeros(1, data.channels, *data.image_size))


def _check_latent_spaces(scene: Scene) -> None:
    settings = scene.config.generator
    spaces = (
        architecture(settings.name).generator().latent_spaces
        if settings.path is None
        else load_generator(settings.path).latent_spaces
    )
    for name, arm in scene.config.arms.items():
        for part in arm.parts().values():
            space = getattr(part, "latent_space", None)
            if space is not None and space not in spaces:
                raise GeneratorError(
                    f"arm '{name}' asks for latent_space={space} but the generator has {', '.join(spaces)}: choose one "
                    "of them, or a StyleGAN3 generator"
                )


def _check_foregrounds(scene: Scene) -> None:
    """An arm that spares what the diagnosis rests on needs a model in which feature maps are seen."""
    data = scene.dataset
    for name, arm in scene.config.arms.items():
        if any(getattr(part, "foreground", False) for part in arm.parts().values()):
            try:
                find_cam_layer(scene.new_model(name), torch.zeros(1, data.channels, *data.image_size))
            except ModelError as error:
                raise ModelError(f"{error} (arms.{name}.options.foreground=false)") from error


def check_defense(scene: Scene, arm: str, generator: Path) -> None:
    """Raise what an arm's defense cannot do with its model, before anything is trained.

    Args:
        generator: of the shadow generator, which has to be there where the defense needs one.
    """
    client = scene.dataset.clients[0].name
    loaded = load_arm_generator(scene, arm, generator)
    build_defense(scene, arm, loaded, client).check_model(scene.new_model(arm))

"""What decides each result: settings, images, code and versions, in one hash."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.registry import DEFENSES, part_names
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.generators.registry import GENERATORS
from shadow_defense.models.naming import is_model_file
from shadow_defense.models.registry import MODELS
from shadow_defense.report.records.reading import Settings

PRETRAINING, TRAINING, ATTACKING, SCORING, COSTING = (
    f"shadow_defense.experiment.tasks.{name}" for name in ("pretraining", "training", "attacking", "scoring", "costing")
)
OTHER_ENGINES = "shadow_defense.experiment.engines"


def key_of(*parts: Any) -> str:
    """A short hash of plain values.

    >>> key_of("a", [1, None]) == key_of("a", [1, None]) != key_of("a", [1, 0])
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


@cache
def libraries() -> str:
    """The versions of torch and numpy: others may give other digits."""
    return f"torch {metadata.version('torch')}, numpy {metadata.version('numpy')}"


def file_hash(path: Path | None) -> str | None:
    """Of a file's content; None for no file."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def modules_of(settings: DefenseSettings) -> list[str]:
    """Where the defenses lie that ``settings`` name."""
    return [DEFENSES.module(name) for name in part_names(settings.defense)]


def images_key(scene: Scene) -> str:
    """Of the images, labels, clients, seed, threads and libraries."""
    data, config = scene.dataset, scene.config
    clients = [[client.name, len(client.train), client.batch_size] for client in data.clients]
    statistics = [data.normalisation.mean, data.normalisation.std]
    return key_of(
        libraries(), scene.images.sha256, statistics, clients, [data.class_names, config.seed, config.threads]
    )


def public_key(scene: Scene) -> str:
    """Of the public images, which are all that a generator is trained on, the seed, threads and libraries."""
    size = [scene.dataset.channels, *scene.dataset.image_size]
    return key_of(libraries(), scene.images.public_sha256, size, [scene.config.seed, scene.config.threads])


def generator_key(scene: Scene) -> str:
    settings = scene.config.generator
    files = [file_hash(path) for path in (settings.path, settings.begin_from, settings.begin_from_discriminator)]
    chosen = settings.model_dump(mode="json", exclude={"path", "begin_from", "begin_from_discriminator"})
    code = code_hash(PRETRAINING, GENERATORS.module(settings.name))
    return key_of(code, public_key(scene), chosen, files, *computed_on(scene))


def start_key(scene: Scene) -> str:
    """Of what every training starts from: images and model."""
    model = scene.config.model
    in_file = is_model_file(model.name)
    files = [file_hash(model.start), file_hash(model.weights), file_hash(Path(model.name)) if in_file else None]
    code = None if in_file else code_hash(MODELS.module(model.name))
    return key_of(images_key(scene), model.model_dump(mode="json", exclude={"start", "weights"}), files, code)


def _generator_if(needed: bool, scene: Scene) -> str | None:
    return generator_key(scene) if needed else None


def computed_on(scene: Scene) -> list[str]:
    """The kind of device, whose digits are its own; of a CPU has the key an entry no more than it ever had."""
    return [] if scene.device.type == "cpu" else [scene.device.type]


def training_key(scene: Scene, arm: str) -> str:
    """Not of the updates that are kept: more of them make it train again, with the same numbers."""
    settings, training = scene.config.arms[arm], scene.config.training.model_dump(mode="json")
    generator = _generator_if(settings.kind().needs_generator, scene)
    engine = scene.config.engine
    code = code_hash(TRAINING, *modules_of(settings), *([] if engine == "in-process" else [OTHER_ENGINES]))
    return key_of(code, start_key(scene), deciding(settings), training, engine, generator, *computed_on(scene))


def attack_key(scene: Scene, job: Job, training: str, randomised: bool) -> str:
    """``training``: the key of the training whose update is attacked."""
    settings = scene.config.attacks[job.attack]
    generator = _generator_if(settings.needs_generator, scene)
    chosen = [settings.attack, settings.resolved(), settings.threat_model]
    where = [job.attack, job.round, job.client, randomised]
    return key_of(code_hash(ATTACKING, ATTACKS.module(settings.attack)), training, chosen, where, generator)


def score_key(scene: Scene, attack: str, reference: str) -> str:
    """``attack``: of what is scored; ``reference``: of the training whose final model shows the foreground."""
    metrics = scene.config.metrics
    settings = metrics.model_dump(mode="json", exclude={"lpips_weights"})
    found = [settings, file_hash(metrics.lpips_weights), scene.images.masks_sha256]
    return key_of(code_hash(SCORING), attack, reference, found)


def cost_key(scene: Scene, arm: str) -> str:
    settings, training = scene.config.arms[arm], scene.config.training.model_dump(mode="json")
    generator = _generator_if(settings.kind().needs_generator, scene)
    code = code_hash(COSTING, *modules_of(settings))
    return key_of(code, start_key(scene), deciding(settings), training, generator, *computed_on(scene))


def deciding(settings: DefenseSettings) -> Settings:
    """What decides a defense's numbers: its resolved settings, not the preset that they came from."""
    named = settings.model_dump(mode="json", exclude={"preset", "options"})
    return {**named, "settings": settings.settings().model_dump(mode="json")}

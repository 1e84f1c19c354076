"""What decides each result: settings, images, code and versions, in one hash."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.provenance import code_hash
from shadow_defense.experiment.scene import Job, Scene

COMMON = ("seeds.py", "data", "experiment/scene.py", "experiment/averaged_clients.py")
GENERATOR_CODE = (*COMMON, "generators", "experiment/tasks/pretraining.py")
TRAINING_CODE = (
    *(*COMMON, "generators", "shadow", "defenses", "models", "federated", "metrics"),
    *("experiment/tasks/training.py", "experiment/engines.py", "experiment/flower_apps.py"),
)
ATTACK_CODE = (*COMMON, "attacks", "generators", "models", "federated", "metrics", "experiment/tasks/attacking.py")
SCORE_CODE = (*COMMON, "models", "metrics", "experiment/tasks/scoring.py")
COST_CODE = (*TRAINING_CODE, "experiment/tasks/costing.py")
"""The source below the package that computes each kind of task: where it changes, results are computed anew."""


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


def data_hash(scene: Scene) -> str:
    """Of all pixels and labels in their places: two runs with the same hash saw the same federation."""
    data, digest = scene.dataset, hashlib.sha256()
    clients = (part for client in data.clients for part in (client.train, client.validation))
    for part in (data.public, data.test, *clients):
        digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()


def images_key(scene: Scene) -> str:
    """Of the images, labels, clients, seed, threads and libraries."""
    known: dict[tuple[int, int], str] = scene.images.__dict__.setdefault("images_keys", {})
    chosen = (scene.config.seed, scene.config.threads)
    if chosen not in known:
        data = scene.dataset
        clients = [[client.name, len(client.train), client.batch_size] for client in data.clients]
        known[chosen] = key_of(
            libraries(),
            data_hash(scene),
            [data.normalisation.mean, data.normalisation.std],
            clients,
            [data.class_names, *chosen],
        )
    return known[chosen]


def public_key(scene: Scene) -> str:
    """Of the public images, which are all that a generator is trained on, the seed, threads and libraries."""
    public, config = scene.dataset.public, scene.config
    pixels = hashlib.sha256(public.images.contiguous().numpy().tobytes()).hexdigest()
    size = [scene.dataset.channels, *scene.dataset.image_size]
    return key_of(libraries(), pixels, size, [config.seed, config.threads])


def generator_key(scene: Scene) -> str:
    settings = scene.config.generator
    files = [file_hash(path) for path in (settings.path, settings.begin_from, settings.begin_from_discriminator)]
    chosen = settings.model_dump(mode="json", exclude={"path", "begin_from", "begin_from_discriminator"})
    return key_of(code_hash(*GENERATOR_CODE), public_key(scene), chosen, files)


def start_key(scene: Scene) -> str:
    """Of what every training starts from: images and model."""
    model = scene.config.model
    paths = [file_hash(model.start), file_hash(model.weights)]
    return key_of(images_key(scene), model.model_dump(mode="json", exclude={"start", "weights"}), paths)


def _generator_if(needed: bool, scene: Scene) -> str | None:
    return generator_key(scene) if needed else None


def training_key(scene: Scene, arm: str) -> str:
    """Not of the updates that are kept: more of them make it train again, with the same numbers."""
    settings, training = scene.config.arms[arm], scene.config.training.model_dump(mode="json")
    generator = _generator_if(settings.kind().needs_generator, scene)
    code = code_hash(*TRAINING_CODE)
    return key_of(code, start_key(scene), deciding(settings), training, scene.config.engine, generator)


def attack_key(scene: Scene, job: Job, training: str, randomised: bool) -> str:
    """``training``: the key of the training whose update is attacked."""
    settings = scene.config.attacks[job.attack]
    attack = settings.build()
    generator = _generator_if("generator" in attack.needs, scene)
    chosen = [settings.attack, attack.model_dump(mode="json"), settings.threat_model]  # type: ignore[attr-defined]
    where = [job.attack, job.round, job.client, randomised]
    return key_of(code_hash(*ATTACK_CODE), training, chosen, where, generator)


def score_key(scene: Scene, attack: str, reference: str) -> str:
    """``attack``: of what is scored; ``reference``: of the training whose final model shows the foreground."""
    metrics = scene.config.metrics
    settings = metrics.model_dump(mode="json", exclude={"lpips_weights"})
    found = [settings, file_hash(metrics.lpips_weights), masks_hash(scene)]
    return key_of(code_hash(*SCORE_CODE), attack, reference, found)


def masks_hash(scene: Scene) -> str | None:
    """Of the lesion masks of all clients, which :func:`data_hash` leaves out; None where the data has none."""
    masks = [client.train.masks for client in scene.dataset.clients if client.train.masks is not None]
    if not masks:
        return None
    return hashlib.sha256(b"".join(each.contiguous().numpy().tobytes() for each in masks)).hexdigest()


def cost_key(scene: Scene, arm: str) -> str:
    settings, training = scene.config.arms[arm], scene.config.training.model_dump(mode="json")
    generator = _generator_if(settings.kind().needs_generator, scene)
    return key_of(code_hash(*COST_CODE), start_key(scene), deciding(settings), training, generator)


def deciding(settings: DefenseSettings) -> dict[str, Any]:
    """What decides a defense's numbers: its resolved settings, not the preset that they came from."""
    named = settings.model_dump(mode="json", exclude={"preset", "options"})
    return {**named, "settings": settings.settings().model_dump(mode="json")}

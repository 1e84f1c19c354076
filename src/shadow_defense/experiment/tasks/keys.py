"""What decides each result, in plain values: settings, images, code and versions. Hashed, it is the task's key."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.registry import DEFENSES, part_names
from shadow_defense.experiment.provenance import versions_of_packages
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.generators.registry import GENERATORS
from shadow_defense.models.naming import is_model_file
from shadow_defense.models.registry import MODELS, OWN
from shadow_defense.report.records.reading import Settings

PRETRAINING, TRAINING, ATTACKING, SCORING, COSTING = (
    f"shadow_defense.experiment.tasks.{name}" for name in ("pretraining", "training", "attacking", "scoring", "costing")
)
OTHER_ENGINES, OTHER_MODELS = "shadow_defense.experiment.engines", "shadow_defense.models.own"
ADAPTIVE = "shadow_defense.attacks.adaptive.attack"

Parts = Mapping[str, object]
"""By name, as they are written beside the result."""


@cache
def libraries() -> Mapping[str, str]:
    """The versions of what computes, with Python's, whose syntax trees are hashed: others may give other digits."""
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **versions_of_packages()}


def file_hash(path: Path | None) -> str | None:
    """Of a file's content; None for no file."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def modules_of(settings: DefenseSettings) -> list[str]:
    """Where the defenses lie that ``settings`` name."""
    return [DEFENSES.module(name) for name in part_names(settings.defense)]


def images_parts(scene: Scene) -> Parts:
    """Images, labels and clients, and what computes on them."""
    data = scene.dataset
    return {
        "sha256": scene.images.sha256,
        "ids": scene.images.ids_sha256,
        "clients": [[client.name, len(client.train), client.batch_size] for client in data.clients],
        "classes": data.class_names,
        "normalisation": [data.normalisation.mean, data.normalisation.std],
        "seed": scene.config.seed,
        **computed_on(scene),
    }


def public_parts(scene: Scene) -> Parts:
    """The public images, which are all that a generator is trained on, and what computes on them."""
    size = [scene.dataset.channels, *scene.dataset.image_size]
    return {"sha256": scene.images.public_sha256, "size": size, "seed": scene.config.seed, **computed_on(scene)}


def computed_on(scene: Scene) -> Parts:
    """Libraries, threads and the kind of device, each of which has digits of its own."""
    return {"libraries": libraries(), "threads": scene.config.threads, "device": scene.device.type}


def generator_parts(scene: Scene) -> Parts:
    settings = scene.config.generator
    files = [file_hash(path) for path in (settings.path, settings.begin_from, settings.begin_from_discriminator)]
    # A file says itself of which architecture it is.
    names = [settings.name] if settings.path is None else list(GENERATORS)
    return {
        "code": code_hash(PRETRAINING, *map(GENERATORS.module, names)),
        "public": public_parts(scene),
        "generator": settings.model_dump(mode="json", exclude={"path", "begin_from", "begin_from_discriminator"}),
        "files": files,
    }


def start_parts(scene: Scene) -> Parts:
    """What every training starts from: images and model."""
    model = scene.config.model
    in_file = is_model_file(model.name)
    code = [] if in_file else [MODELS.module(model.name)]
    return {
        "code": code_hash(*code, *([] if model.name in OWN else [OTHER_MODELS])),
        "images": images_parts(scene),
        "model": model.model_dump(mode="json", exclude={"start", "weights"}),
        "files": [file_hash(path) for path in (model.start, model.weights, Path(model.name) if in_file else None)],
    }


def training_parts(scene: Scene, arm: str) -> Parts:
    """Not the updates that are kept: more of them make it train again, with the same numbers."""
    needed = scene.config.arms[arm].kind().needs_generator
    return {**arm_parts(scene, arm), "generator": generator_parts(scene) if needed else None}


def arm_parts(scene: Scene, arm: str) -> Parts:
    """What an arm's updates are read with: all of its training but the generator, which others' sites may keep."""
    settings, engine = scene.config.arms[arm], scene.config.engine
    other = [] if engine == "in-process" else [OTHER_ENGINES]
    return {
        "code": code_hash(TRAINING, *modules_of(settings), *other),
        "start": start_parts(scene),
        "defense": deciding(settings),
        "training": scene.config.training.model_dump(mode="json"),
        "engine": engine,
    }


def attack_parts(scene: Scene, job: Job, attacked: object, randomised: bool) -> Parts:
    """``attacked``: the name of the training whose update it is."""
    settings = scene.config.attacks[job.attack]
    adaptive = [] if settings.adaptive is None else [ADAPTIVE]
    return {
        "code": code_hash(ATTACKING, ATTACKS.module(settings.attack), *adaptive),
        "training": attacked,
        "attack": settings.attack,
        "settings": settings.resolved(),
        "threat_model": settings.threat_model,
        "label": job.attack,
        "round": job.round + 1,
        "client": job.client,
        "randomised": randomised,
        "generator": generator_parts(scene) if settings.needs_generator else None,
    }


def score_parts(scene: Scene, attack: str, reference: str) -> Parts:
    """``attack``: the name of what is scored; ``reference``: of the training whose final model shows the foreground."""
    metrics = scene.config.metrics
    return {
        "code": code_hash(SCORING),
        "attack": attack,
        "reference": reference,
        "metrics": metrics.model_dump(mode="json", exclude={"lpips_weights"}),
        "lpips_weights": file_hash(metrics.lpips_weights),
        "masks": scene.images.masks_sha256,
    }


def cost_parts(scene: Scene, arm: str) -> Parts:
    """The undefended side is the first arm's model."""
    arms = [scene.config.arms[name] for name in (arm, scene.reference)]
    code = code_hash(COSTING, *(module for settings in arms for module in modules_of(settings)))
    return {**training_parts(scene, arm), "code": code, "beside": deciding(arms[1])}


def deciding(settings: DefenseSettings) -> Settings:
    """What decides a defense's numbers: its resolved settings, not the preset that they came from."""
    named = settings.model_dump(mode="json", exclude={"preset", "options"})
    return {
        **named,
        "defense": "+".join(part_names(settings.defense)),
        "settings": settings.settings().model_dump(mode="json"),
    }

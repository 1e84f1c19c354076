"""The task of a shadow generator: trained on the public images, or taken from the file that a configuration names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import generator_parts
from shadow_defense.files import atomic_path
from shadow_defense.generators.build import load_generator
from shadow_defense.generators.interface import Generator, check_generator
from shadow_defense.generators.training import PRETRAINING, pretrain
from shadow_defense.progress import Progress

GENERATOR = "generator.safetensors"


@dataclass(frozen=True, eq=False)
class Pretraining(Task):
    """The shadow generator of a scene."""

    scene: Scene

    kind = "generator"
    counted = PRETRAINING

    def decided_by(self) -> Mapping[str, object]:
        return generator_parts(self.scene)

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: shadow generator"

    def steps(self) -> int:
        return self.scene.config.generator.steps

    def is_done(self, place: Path) -> bool:
        return (place / GENERATOR).is_file()

    def compute(self, store: Store, progress: Progress) -> None:
        settings, data, place = self.scene.config.generator, self.scene.dataset, store.place(self)
        if settings.path is None:
            pretrain(
                settings,
                data.public.images,
                seed=self.scene.config.seed,
                folder=place,
                progress=progress,
                device=self.scene.device,
            )
            return
        check_generator(load_generator(settings.path), data.channels, data.image_size)
        with atomic_path(place / GENERATOR) as temporary:
            shutil.copyfile(settings.path, temporary)


def generator_file(scene: Scene, store: Store) -> Path:
    """Where the shadow generator of a scene lies, whether it is there or not."""
    return store.place(Pretraining(scene)) / GENERATOR


def generator_for_arm(scene: Scene, arm: str) -> Sequence[Task]:
    """What a training of the arm needs."""
    return [Pretraining(scene)] if scene.config.arms[arm].kind().needs_generator else []


def generator_for_attack(scene: Scene, attack: str) -> Sequence[Task]:
    """What an attack needs besides an update."""
    return [Pretraining(scene)] if scene.config.attacks[attack].needs_generator else []


def load_arm_generator(scene: Scene, arm: str, path: Path) -> Generator | None:
    """The shadow generator where an arm's defense needs it. Raises :class:`RunError` where it is not trained yet."""
    if not scene.config.arms[arm].kind().needs_generator:
        return None
    if not path.exists():
        raise RunError(f"{path} is missing: run the stage `pretrain` of this run first (`shadow-defense pretrain`)")
    generator = load_generator(path)
    check_generator(generator, scene.dataset.channels, scene.dataset.image_size)
    return generator

"""A training in its folder, as an engine and its other processes see it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadow_defense.config import config_from
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Scene, opened_scene
from shadow_defense.experiment.tasks.pretraining import load_arm_generator
from shadow_defense.files import read_json, write_json
from shadow_defense.generators.interface import Generator

PLACE = "place.json"
"""In a training's folder: what is trained there, for the processes of an engine."""

Keep = Mapping[int, frozenset[str]]
"""For each round (0-based) the clients whose updates are kept."""


class TrainingPlace(Scene):
    """A scene with one arm in training: what an engine is given.

    Attributes:
        arm: that is trained.
        folder: of the training.
        generator_path: of the shadow generator, whether it is there or not.
    """

    def __init__(self, scene: Scene, arm: str, folder: Path, generator_path: Path, keep: Keep | None = None) -> None:
        super().__init__(scene.config, scene.images)
        self.arm, self.folder, self.generator_path, self._keep = arm, folder, generator_path, keep

    @property
    def keep(self) -> Keep:
        """Whose updates are written: those that were named, or that the scene's attacks ask for."""
        return self.kept if self._keep is None else self._keep

    @property
    def defense(self) -> DefenseSettings:
        return self.config.arms[self.arm]

    def load_generator(self) -> Generator | None:
        """As :func:`load_arm_generator`."""
        return load_arm_generator(self, self.arm, self.generator_path)

    def write(self) -> None:
        """Say in the folder what is trained there: :meth:`open` makes it again in another process."""
        record = {
            "config": self.config.as_dict(),
            "arm": self.arm,
            "generator": os.path.relpath(self.generator_path, self.folder),
            "keep": {str(round): sorted(names) for round, names in sorted(self.keep.items())},
        }
        write_json(self.folder / PLACE, record)

    @classmethod
    def open(cls, folder: Path) -> TrainingPlace:
        """The training in a folder. Raises :class:`RunError` where there is none."""
        record = read_json(folder / PLACE)
        try:
            scene = opened_scene(config_from(record["config"]).model_dump_json())
            return cls(scene, record["arm"], folder, folder / record["generator"], read_keep(record))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{folder / PLACE} does not say what is trained there: delete {folder}") from error


def read_keep(record: Mapping[str, Any]) -> Keep:
    """What a training's record in its folder says is kept."""
    return {int(round): frozenset(names) for round, names in record["keep"].items()}

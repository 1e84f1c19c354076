"""The task of one federated training: an arm, with its defense, from the first round to the last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shadow_defense.config import config_from
from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import Resources
from shadow_defense.errors import GeneratorError, RunError
from shadow_defense.experiment.scene import Placed, Scene, opened_scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import deciding, training_key
from shadow_defense.experiment.tasks.pretraining import GENERATOR, Pretraining, load_run_generator
from shadow_defense.federated.batch_norm_policy import check_public_images, lacks_statistics
from shadow_defense.federated.rounds import TRAINING, Federation, kept_updates, read_journal
from shadow_defense.federated.update import ALL_CLIENTS
from shadow_defense.files import read_json, write_json
from shadow_defense.generators.build import architecture, load_generator
from shadow_defense.generators.interface import Generator
from shadow_defense.metrics.lpips import load_lpips
from shadow_defense.metrics.utility import utility_from_logits
from shadow_defense.models.functional import training_mode
from shadow_defense.progress import Progress

PLACE = "place.json"
"""In a training's folder: what is trained there, for the processes of an engine."""

Keep = Mapping[int, frozenset[str]]
"""For each round (0-based) the clients whose updates are kept."""


class TrainingPlace(Placed):
    """A scene with one arm in training: what an engine is given.

    Attributes:
        arm: that is trained.
        keep: whose updates are written, by round (0-based).
    """

    def __init__(self, scene: Scene, arm: str, folder: Path, generator: Path, keep: Keep) -> None:
        super().__init__(scene.config, scene.images)
        self.arm, self.keep = arm, keep
        self._folder, self._generator = folder, generator

    def arm_folder(self, arm: str) -> Path:
        return self._folder

    @property
    def generator_path(self) -> Path:
        return self._generator / GENERATOR

    def write(self) -> None:
        """Say in the folder what is trained there: :meth:`open` makes it again in another process."""
        record = {
            "config": self.config.as_dict(),
            "arm": self.arm,
            "generator": os.path.relpath(self._generator, self._folder),
            "keep": {str(round): sorted(names) for round, names in sorted(self.keep.items())},
        }
        write_json(self._folder / PLACE, record)

    @classmethod
    def open(cls, folder: Path) -> TrainingPlace:
        """The training in a folder. Raises :class:`RunError` where there is none."""
        record = read_json(folder / PLACE)
        try:
            scene = opened_scene(config_from(record["config"]).model_dump_json())
            return cls(scene, record["arm"], folder, folder / record["generator"], _read_keep(record))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{folder / PLACE} does not say what is trained there: delete {folder}") from error


@dataclass(frozen=True)
class Engine:
    """What carries a training from round to round.

    Attributes:
        train_arm: trains an arm, or goes on with it.
        check: raises :class:`RunError` where the engine is not installed.
        check_scene: raises :class:`RunError` for what the engine cannot carry, before anything is computed.
        arms_at_once: whether arms are trained in parallel; an engine that fills the machine by itself takes one by one.
    """

    train_arm: Callable[[TrainingPlace, Progress], None]
    check: Callable[[], None]
    check_scene: Callable[[Scene], None]
    arms_at_once: bool = True


@dataclass(frozen=True, eq=False)
class Training(Task):
    """One arm of a scene. Where it has kept fewer updates than are wanted, it trains again, to the same numbers."""

    scene: Scene
    arm: str
    engine: Engine
    keep: Keep = field(default_factory=dict)

    kind = "training"
    counted = TRAINING

    @cached_property
    def key(self) -> str:
        return training_key(self.scene, self.arm)

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: training"

    def describe(self) -> Mapping[str, Any]:
        config = self.scene.config
        return {
            "arm": self.arm,
            "defense": deciding(config.arms[self.arm]),
            "model": config.model.model_dump(mode="json"),
            "training": config.training.model_dump(mode="json"),
            "seed": config.seed,
            "engine": config.engine,
        }

    def needs(self) -> Sequence[Task]:
        return [Pretraining(self.scene)] if self.scene.config.arms[self.arm].kind().needs_generator else []

    def steps(self) -> int:
        return self.scene.config.training.rounds

    @property
    def alone(self) -> bool:
        return not self.engine.arms_at_once

    def is_done(self, place: Path) -> bool:
        try:
            done = read_journal(place)[0]
        except RunError:
            # Tried again, a damaged one says what is wrong with it.
            return False
        return done >= self.scene.config.training.rounds and self._wanted() <= _stored(place)

    def compute(self, store: Store, progress: Progress) -> None:
        place = store.place(self)
        keep = _united(self.keep, _promised(place))
        rounds = read_journal(place)[0]
        if {(round, who) for round, who in _flat(keep) if round < rounds} & self._wanted() - _stored(place):
            # Rounds whose updates are wanted now were trained without keeping them.
            shutil.rmtree(place)
        training = TrainingPlace(self.scene, self.arm, place, store.place(Pretraining(self.scene)), keep)
        training.write()
        self.engine.train_arm(training, progress)

    def _wanted(self) -> set[tuple[int, str]]:
        scene = self.scene
        if scene.shows_averages:
            return {(round, ALL_CLIENTS) for round in self.keep}
        return {(round, who) for round, who in _flat(self.keep) if who in scene.taking_part(round)}


def _flat(keep: Keep) -> list[tuple[int, str]]:
    return [(round, name) for round, names in keep.items() for name in names]


def _united(first: Keep, second: Keep) -> dict[int, frozenset[str]]:
    rounds = sorted({*first, *second})
    return {round: first.get(round, frozenset()) | second.get(round, frozenset()) for round in rounds}


def _promised(place: Path) -> Keep:
    """What the training that lies there keeps, or was to keep when it was stopped."""
    return _read_keep(read_json(place / PLACE)) if (place / PLACE).exists() else {}


def _read_keep(record: Mapping[str, Any]) -> Keep:
    return {int(round): frozenset(names) for round, names in record["keep"].items()}


def _stored(place: Path) -> set[tuple[int, str]]:
    return set(kept_updates(place))


def check_scene(scene: Scene) -> None:
    """Raise now what a later stage would raise after hours: the model, the attacked clients, the weights of LPIPS."""
    for name, arm in scene.config.arms.items():
        if lacks_statistics(scene.new_model(name), arm.share_bn, scene.config.training.batch_norm):
            check_public_images(scene.dataset.public.images, arm.share_bn)
    for attack in scene.config.attacks:
        scene.attacked_updates(attack)
    _check_latent_spaces(scene)
    metrics = scene.config.metrics
    if metrics.lpips:
        load_lpips(metrics.lpips, metrics.lpips_weights)


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


def check_defenses(run: Placed) -> None:
    """Raise what an arm's defense cannot do with its model, before anything is trained."""
    client = run.dataset.clients[0].name
    for arm in run.config.arms:
        build_defense(run, arm, load_run_generator(run, arm), client).check_model(run.new_model(arm))


@torch.no_grad()
def predict(model: nn.Module, images: ImageSet, normalisation: Normalisation, batch_size: int = 256) -> torch.Tensor:
    """Logits (n, classes) of a whole set, in eval mode."""
    with training_mode(model, False):
        return torch.cat([model(normalisation.apply(chunk.float() / 255)) for chunk in images.images.split(batch_size)])


def evaluation(scene: Scene, model: nn.Module) -> dict[str, Any]:
    """The task metrics of the global model on all clients' validation images, and on the test images."""
    data = scene.dataset
    sets = {"validation": [client.validation for client in data.clients], "test": [data.test]}
    measured = {}
    for name, parts in sets.items():
        present = [part for part in parts if len(part)]
        if present:
            logits = torch.cat([predict(model, part, data.normalisation) for part in present])
            measured[name] = utility_from_logits(logits, torch.cat([part.labels for part in present]))
    return measured


def build_defense(
    scene: Scene,
    arm: str,
    generator: Generator | None,
    client: str,
    *,
    secret_seed: int | None = None,
    site: Site | None = None,
) -> Defense:
    """A client's fresh defense; its draws follow from the run's seed, or from one that only the client knows."""
    data, seed = scene.dataset, scene.config.seed if secret_seed is None else secret_seed
    settings = scene.config.arms[arm]
    return settings.build(Resources(generator, data.normalisation, data.public, data.classes, client, seed, site))


def train_in_process(place: TrainingPlace, progress: Progress | None = None) -> None:
    """Train an arm, or go on with it; every arm starts from the same model, on the same data in the same order."""
    arm, generator = place.arm, load_run_generator(place, place.arm)
    defenses = {client.name: build_defense(place, arm, generator, client.name) for client in place.dataset.clients}
    Federation(
        model=place.new_model(arm),
        dataset=place.dataset,
        defenses=defenses,
        settings=place.config.training,
        loss_fn=place.config.training.loss_function(),
        evaluate=lambda model: evaluation(place, model),
        seed=place.config.seed,
        folder=place.arm_folder(arm),
        keep=place.keep,
        share_bn=place.config.arms[arm].share_bn,
    ).run(progress)

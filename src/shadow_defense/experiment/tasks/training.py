"""The task of one federated training: an arm, with its defense, from the first round to the last; and of one on
the public images alone, which no client takes part in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import Resources
from shadow_defense.defenses.kind import Site
from shadow_defense.errors import ConfigError, RunError
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import training_parts
from shadow_defense.experiment.tasks.pretraining import generator_file, generator_for_arm
from shadow_defense.experiment.tasks.training_place import PLACE, Keep, TrainingPlace, read_keep
from shadow_defense.federated.batch_norm_policy import evaluable_state
from shadow_defense.federated.rounds import TRAINING, Federation
from shadow_defense.federated.training_folder import kept_updates, read_journal, state_folder, train_again
from shadow_defense.federated.update import ALL_CLIENTS
from shadow_defense.files import read_json, read_tensors
from shadow_defense.generators.interface import Generator
from shadow_defense.metrics.utility import evaluate
from shadow_defense.progress import Progress


def _accepted(*_: object) -> None:
    """The engine is always there, and carries every scene."""


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
    check: Callable[[], None] = _accepted
    check_scene: Callable[[Scene], None] = _accepted
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

    def decided_by(self) -> Mapping[str, object]:
        return training_parts(self.scene, self.arm)

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: training"

    def needs(self) -> Sequence[Task]:
        return generator_for_arm(self.scene, self.arm)

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
        training = TrainingPlace(self.scene, self.arm, place, generator_file(self.scene, store), keep)
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
    return read_keep(read_json(place / PLACE)) if (place / PLACE).exists() else {}


def _stored(place: Path) -> set[tuple[int, str]]:
    return set(kept_updates(place))


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
    arm, generator = place.arm, place.load_generator()
    federation(
        place,
        arm,
        place.folder,
        {client.name: build_defense(place, arm, generator, client.name) for client in place.dataset.clients},
        place.keep,
    ).run(progress)


def federation(
    scene: Scene,
    arm: str,
    folder: Path,
    defenses: Mapping[str, Defense],
    keep: Keep,
    data: FederatedDataset | None = None,
) -> Federation:
    """A training in one process, as the scene says; ``data``: with these clients in place of its own."""
    settings = scene.config.training
    return Federation(
        model=scene.new_model(arm).to(scene.device),
        dataset=data or scene.dataset,
        defenses=defenses,
        settings=settings,
        loss_fn=settings.loss_function(),
        evaluate=lambda model: evaluate(model, scene.dataset),
        seed=scene.config.seed,
        folder=folder,
        keep=keep,
        share_bn=scene.config.arms[arm].share_bn,
    )


def final_model(scene: Scene, arm: str, folder: Path) -> nn.Module:
    """The global model that a finished training in ``folder`` ended with, as it can be run in eval mode.

    Raises :class:`RunError` where it is not finished.
    """
    model, training = scene.new_model(arm), scene.config.training
    if read_journal(folder)[0] < training.rounds:
        raise RunError(f"arm '{arm}' is not fully trained yet: run the stage `train` first")
    state, _ = read_tensors(state_folder(folder, training.rounds) / "global.safetensors", train_again(folder))
    share_bn = scene.config.arms[arm].share_bn
    model.to(scene.device).load_state_dict(evaluable_state(model, state, share_bn, training.batch_norm, scene.dataset))
    return model


BATCH_SIZE = 16

PUBLIC = "public"


class Central(Training):
    """Plain SGD on the public images, one epoch a round."""

    kind = "central-training"

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: central training on public images"

    def compute(self, store: Store, progress: Progress) -> None:
        place, data = store.place(self), public_federation(self.scene)
        federation(self.scene, self.arm, place, {PUBLIC: Defense()}, {}, data).run(progress)


def public_federation(scene: Scene) -> FederatedDataset:
    """The scene's data with one client in place of all others, that holds the public images."""
    data = scene.dataset
    if len(data.public) == 0:
        raise ConfigError("a training on the public images needs some: raise data.public_fraction")
    nothing = data.test.subset([])
    only = ClientData(PUBLIC, data.public, nothing, nothing, min(BATCH_SIZE, len(data.public)))
    return replace(data, clients=(only,))

"""The task of the updates that clients send from the stored global models of a finished training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import images_parts
from shadow_defense.experiment.tasks.pretraining import generator_file, generator_for_arm, load_arm_generator
from shadow_defense.experiment.tasks.training import Training, build_defense, federation
from shadow_defense.federated.client import prepare_defense
from shadow_defense.federated.training_folder import (
    kept_updates,
    read_journal,
    round_folder,
    state_folder,
    train_again,
    write_journal,
)
from shadow_defense.files import link_file, read_tensors
from shadow_defense.progress import Progress


@dataclass(frozen=True, eq=False)
class Updating(Task):
    """One update of each of the scene's clients from each global model that ``training`` kept.

    Every client is new at the attacked round: its defense has seen no round before. The folder is that of a training
    which ended as ``training`` did and kept these updates, so that all that reads a training reads it.

    Attributes:
        scene: whose clients send the updates; else that of the training.
    """

    scene: Scene
    training: Training

    kind = "updates"
    counted = "updates"

    @property
    def arm(self) -> str:
        return self.training.arm

    def decided_by(self) -> Mapping[str, object]:
        return {
            "code": code_hash(__name__),
            "training": self.training.name,
            "images": images_parts(self.scene),
            "rounds": [round + 1 for round in sorted(self.scene.kept)],
        }

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: updates of victims"

    def needs(self) -> Sequence[Task]:
        return [self.training, *generator_for_arm(self.scene, self.arm)]

    def steps(self) -> int:
        return len(self.scene.kept)

    def is_done(self, place: Path) -> bool:
        try:
            done = read_journal(place)[0]
        except RunError:
            return False
        names = {client.name for client in self.scene.dataset.clients}
        stored = set(kept_updates(place))
        return done > 0 and all((round, name) in stored for round in self.scene.kept for name in names)

    def compute(self, store: Store, progress: Progress) -> None:
        scene, place, source = self.scene, store.place(self), store.place(self.training)
        generator = load_arm_generator(scene, self.arm, generator_file(scene, store))
        clients = scene.dataset.clients
        keep = {round: frozenset(client.name for client in clients) for round in scene.kept}
        steps = progress.start(self.counted, self.steps())
        for round in sorted(scene.kept):
            # New ones each time: what a defense keeps of one round has no part in another.
            defenses = {client.name: build_defense(scene, self.arm, generator, client.name) for client in clients}
            victims = federation(scene, self.arm, place, defenses, keep)
            path = round_folder(source, round) / "global.safetensors"
            victims.global_state, _ = read_tensors(path, train_again(source))
            for client in clients:
                prepare_defense(defenses[client.name], client, scene.dataset.normalisation)
            victims.updates(round)
            steps.advance()
        rounds, history = read_journal(source)
        final = state_folder(place, rounds) / "global.safetensors"
        link_file(state_folder(source, rounds) / "global.safetensors", final)
        write_journal(place, rounds, history)

"""The task of handing a client's protected images to removers: the worst case of an arm that protects once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.experiment.handed_over import protecting_once, removals
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION, Attacking
from shadow_defense.experiment.tasks.pretraining import generator_file, generator_for_arm, load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.client import prepare_defense
from shadow_defense.metrics.ssim import ssim
from shadow_defense.progress import Progress
from shadow_defense.report.records.run import BEST_REMOVER


@dataclass(frozen=True, eq=False)
class Removing(Attacking):
    """The closest that removers come to each image of a client, in hindsight; the same in every round."""

    @classmethod
    def of(cls, scene: Scene, arm: str, client: str, training: Task) -> Removing:
        return cls(scene, Job(arm, BEST_REMOVER, 0, client), training)

    def decided_by(self) -> Mapping[str, object]:
        return {
            "code": code_hash(__name__),
            "training": self.training.name,
            "attack": self.job.attack,
            "client": self.job.client,
        }

    def needs(self) -> Sequence[Task]:
        return [self.training, *generator_for_arm(self.scene, self.job.arm)]

    def steps(self) -> int:
        return 1

    def compute(self, store: Store, progress: Progress) -> None:
        started, scene, client = time.perf_counter(), self.scene, self.scene.client(self.job.client)
        generator = load_arm_generator(scene, self.job.arm, generator_file(scene, store))
        defense = protecting_once(build_defense(scene, self.job.arm, generator, client.name))
        assert defense is not None
        prepare_defense(defense, client, scene.dataset.normalisation)
        truths = client.train.unit_images()
        made = torch.stack(list(removals(defense, client.train, scene.device).values()))
        closest = torch.stack([ssim(each, truths) for each in made]).argmax(dim=0)
        found = Reconstruction(
            made[closest, torch.arange(len(truths))],
            client.train.labels,
            matching_loss=float("inf"),
            iterations=0,
            seconds=time.perf_counter() - started,
        )
        found.save(store.place(self) / RECONSTRUCTION)

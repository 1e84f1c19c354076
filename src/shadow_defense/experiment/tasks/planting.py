"""The task of what a malicious server reads of one-image clients, with a layer that it plants anew in every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shadow_defense.attacks.planted_reader import PLANTED, PlantedReader, Regression, learn, sign_of
from shadow_defense.attacks.removers.worst_case import scores
from shadow_defense.data.dataset import ClientData, ImageSet, concatenated
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.bounding import Bound, audited_places, psnr_and_ssim
from shadow_defense.experiment.tasks.keys import training_parts
from shadow_defense.experiment.tasks.pretraining import generator_file, generator_for_arm, load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.client import prepare_defense, train_locally
from shadow_defense.generators.interface import Generator
from shadow_defense.metrics.linkage import hits
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps
from shadow_defense.protection.whitening import Whitening, measure_whitening
from shadow_defense.report.kit.formatting import counted
from shadow_defense.report.records.evidence import MALICIOUS_SERVER
from shadow_defense.seeds import named_generator, seed_for

COUNTS = (16, 64)
"""Of numbers that are planted: the server takes what brings public images back best. Under noise fewer are more."""

LEARNED_FROM = 300
"""Public images, at most, whose updates the server learns from."""

READING = "reading updates"
"""The name under which progress is reported, one step a client."""


@dataclass(frozen=True, eq=False)
class Planting(RecordTask[Bound]):
    """What is read of an arm's clients over the first ``looks`` rounds, all rounds' updates averaged.

    A lower bound of what may leave: another server may read more.

    Attributes:
        audited: images read, at most, each of a client of its own.
    """

    scene: Scene
    arm: str
    audited: int
    looks: int

    kind = "planted"
    file = "planted.json"
    record = Bound
    counted = READING
    way = MALICIOUS_SERVER

    def decided_by(self) -> Mapping[str, object]:
        return {
            "code": code_hash(__name__),
            "training": training_parts(self.scene, self.arm),
            "audited": self.audited,
            "rounds": self.looks,
        }

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: malicious server"

    @property
    def by(self) -> str:
        """What a number of it is by."""
        return f"{self.way}, {counted(self.looks, 'round')}"

    def needs(self) -> Sequence[Task]:
        return generator_for_arm(self.scene, self.arm)

    def steps(self) -> int:
        """Clients that train."""
        return len(COUNTS) * (self.audited + LEARNED_FROM)

    def compute(self, store: Store, progress: Progress) -> None:
        scene = self.scene
        generator = load_arm_generator(scene, self.arm, generator_file(scene, store))
        everybody = concatenated([client.train for client in scene.dataset.clients])
        places = audited_places(scene, len(everybody), self.audited)
        images = everybody.subset(places.tolist())
        known = scene.dataset.public
        draws = named_generator(scene.config.seed, "planted", "public")
        known = known.subset(torch.randperm(len(known), generator=draws)[:LEARNED_FROM].tolist())
        server = _Server(scene, self.arm, generator, measure_whitening(scene.dataset.public.unit_images()), self.looks)
        task = progress.start(READING, self.steps())
        by, sent = min(
            (server.read(count, known, images, task) for count in server.counts()),
            key=lambda read: read[0].left(server.whitening),
        )
        task.finish()
        numbers, count = by.numbers(sent), len(by.errors)
        whole = F.pad(numbers.float(), (0, server.whitening.count - count))
        rebuilt = server.whitening.images(whole).clamp(0, 1)
        gallery = server.whitening.coordinates(everybody.unit_images())[:, :count].double()
        misfit = torch.cdist(numbers / by.errors.sqrt(), gallery / by.errors.sqrt())
        truths, mean = images.unit_images(), scene.mean_image
        table, anybody = scores(rebuilt, truths, mean), scores(mean.expand_as(truths), truths, mean)
        self.save(
            store,
            Bound(
                sample_ids=images.sample_ids,
                closest=psnr_and_ssim(table),
                mean_image=psnr_and_ssim(anybody),
                found=tuple(hits(-misfit, places).tolist()),
                gallery=len(everybody),
                removers={f"{count} numbers": float(table["psnr"].mean())},
                planted={},
            ),
        )


@dataclass(frozen=True)
class _Server:
    scene: Scene
    arm: str
    generator: Generator | None
    whitening: Whitening
    looks: int

    def counts(self) -> list[int]:
        """Of numbers that can be planted."""
        return sorted({min(count, self.whitening.count) for count in COUNTS})

    def read(
        self, count: int, known: ImageSet, images: ImageSet, task: Steps
    ) -> tuple[Regression, Float[Tensor, "n k"]]:
        """How to go back from what is sent, learned from ``known`` images, and what clients sent."""
        data, agreed = self.scene.dataset, self.scene.new_model(self.arm)
        model = PlantedReader(agreed, self.whitening, count, data.classes, data.normalisation)
        own = self._sent(model, known, "server", task)
        by = learn(own, self.whitening.coordinates(known.unit_images())[:, :count])
        return by, self._sent(model, images, "clients", task)

    def _sent(self, model: PlantedReader, images: ImageSet, whose: str, task: Steps) -> Float[Tensor, "n k"]:
        """Of each image, by a client that has it alone and a defense of its own, the mean of what it sends."""
        config, data, state, nothing = self.scene.config, self.scene.dataset, model.as_sent(), images.subset([])
        training, secret = config.training, seed_for(config.seed, "planted", whose)
        model.to(self.scene.device)
        sent = torch.zeros(len(images), len(model.planted))
        for place in range(len(images)):
            client = ClientData(f"client-{place}", images.subset([place]), nothing, nothing, 1)
            defense = build_defense(self.scene, self.arm, self.generator, client.name, secret_seed=secret)
            prepare_defense(defense, client, data.normalisation)
            for round in range(self.looks):
                update = train_locally(
                    model,
                    state,
                    client,
                    defense,
                    settings=training,
                    round=round,
                    normalisation=data.normalisation,
                    loss_fn=training.loss_function(),
                    seed=config.seed,
                ).update.tensors
                planted = torch.cat([update[f"{PLANTED}{number}"] for number in range(sent.shape[1])])
                sent[place] += planted / training.learning_rate_at(round) / self.looks
            # The label is granted.
            sent[place] *= sign_of(int(client.train.labels[0]))
            task.advance()
        return sent

"""The task of the worst case: what is made of protected images themselves, which bounds any attack on their updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.attacks.removers.copied import copied, protected_by
from shadow_defense.attacks.removers.learned import TRAINING, pairs_found, train_remover
from shadow_defense.attacks.removers.suite import Knowledge, breaks_unknown_noise, planted_breaks, removers_for
from shadow_defense.attacks.removers.unknown import AsGiven
from shadow_defense.attacks.removers.worst_case import (
    Scores,
    attack,
    distances,
    found_again,
    in_hindsight,
    linkage,
    scores,
)
from shadow_defense.data.dataset import ImageSet, concatenated
from shadow_defense.defenses.base import Defense, RoundContext
from shadow_defense.experiment.handed_over import protecting_once
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import public_parts, training_parts
from shadow_defense.experiment.tasks.pretraining import generator_file, generator_for_arm, load_arm_generator
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.states import on_host
from shadow_defense.generators.interface import Generator
from shadow_defense.progress import Progress
from shadow_defense.report.records.evidence import WORST_CASE
from shadow_defense.seeds import named_generator


@dataclass(frozen=True)
class Broken:
    """Whether sparse noise was broken."""

    sparse_noise: bool


@dataclass(frozen=True, eq=False)
class Breaking(RecordTask[Broken]):
    """A learned remover, trained for so many steps, on sparse noise: where it fails, no worst case counts."""

    scene: Scene
    remover_steps: int

    kind = "break"
    counted = TRAINING
    file = "break.json"
    record = Broken

    def decided_by(self) -> Mapping[str, object]:
        public = public_parts(self.scene)
        return {"code": code_hash(__name__), "public": public, "remover_steps": self.remover_steps}

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: sparse noise that a remover has to break"

    def steps(self) -> int:
        return self.remover_steps

    def compute(self, store: Store, progress: Progress) -> None:
        data = self.scene.dataset
        known = Knowledge(data.public.unit_images(), data.public.labels, data.classes, device=self.scene.device)
        seed, steps = self.scene.config.seed, self.remover_steps
        self.save(store, Broken(breaks_unknown_noise(known, seed=seed, steps=steps, progress=progress)))


@dataclass(frozen=True)
class Bound:
    """Of each audited image by metric (``psnr``, ``ssim``): the closest of all removers, and the mean image.

    Attributes:
        sample_ids: of the audited images.
        found: 1 where the image is found first among all that were protected, shared where several are.
        removers: mean PSNR of each.
        planted: whether each planted break was broken: where one was not, the rest says nothing.
    """

    sample_ids: tuple[str, ...]
    closest: Mapping[str, tuple[float, ...]]
    mean_image: Mapping[str, tuple[float, ...]]
    found: tuple[float, ...]
    gallery: int
    removers: Mapping[str, float]
    planted: Mapping[str, bool]

    @property
    def withheld(self) -> bool:
        return not all(self.planted.values())


@dataclass(frozen=True, eq=False)
class Bounding(RecordTask[Bound]):
    """The worst case of an arm's images, in the first round, in which a growing noise is weakest.

    Attributes:
        audited: images attacked, at most.
        remover_steps: in which the learned remover is trained.
    """

    scene: Scene
    arm: str
    audited: int
    remover_steps: int

    kind = "bound"
    file = "bound.json"
    record = Bound
    counted = TRAINING
    way = WORST_CASE

    def decided_by(self) -> Mapping[str, object]:
        return {
            "code": code_hash(__name__),
            "training": training_parts(self.scene, self.arm),
            "audited": self.audited,
            "remover_steps": self.remover_steps,
        }

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}, {self.arm}: worst case"

    @property
    def by(self) -> str:
        """What a number of it is by."""
        once = self.scene.config.arms[self.arm].kind().draws_once
        return self.way if once else f"{self.way} of round 1"

    def needs(self) -> Sequence[Task]:
        return [*generator_for_arm(self.scene, self.arm), self.breaking]

    @property
    def breaking(self) -> Breaking:
        return Breaking(self.scene, self.remover_steps)

    def steps(self) -> int:
        return self.remover_steps

    def compute(self, store: Store, progress: Progress) -> None:
        scene, data = self.scene, self.scene.dataset
        generator = load_arm_generator(scene, self.arm, generator_file(scene, store))
        everybody = concatenated([client.train for client in data.clients])
        places = audited_places(scene, len(everybody), self.audited)
        images = everybody.subset(places.tolist())
        knowledge = Knowledge(data.public.unit_images(), data.public.labels, data.classes, device=scene.device)
        case = _Case(scene, self.arm, generator, knowledge, self.remover_steps, progress)
        estimates, linked, planted = case.removed(images, everybody, places)
        truths = images.unit_images()
        mean = scene.mean_image
        tables = {name: scores(each, truths, mean) for name, each in estimates.items()}
        self.save(
            store,
            Bound(
                sample_ids=images.sample_ids,
                closest=psnr_and_ssim(in_hindsight(list(tables.values()))),
                mean_image=psnr_and_ssim(scores(mean.expand_as(truths), truths, mean)),
                found=tuple(linked["rank1"].tolist()),
                gallery=len(everybody),
                removers={name: float(each["psnr"].mean()) for name, each in tables.items()},
                planted={**planted, "sparse noise": self.breaking.load(store).sparse_noise},
            ),
        )


def audited_places(scene: Scene, count: int, audited: int) -> Int64[Tensor, " n"]:
    """Which of all clients' images are audited, the same for all arms."""
    draws = named_generator(scene.config.seed, "bound", "audited")
    return torch.randperm(count, generator=draws)[:audited].sort().values


def psnr_and_ssim(found: Scores) -> dict[str, tuple[float, ...]]:
    """As a :class:`Bound` has them."""
    return {name: tuple(found[name].tolist()) for name in ("psnr", "ssim")}


Removed = tuple[dict[str, Tensor], Scores, dict[str, bool]]
"""Estimates by remover, who is found again, and which planted breaks of its own were broken."""


@dataclass(frozen=True)
class _Case:
    """The attacker, who has everything but the draws."""

    scene: Scene
    arm: str
    generator: Generator | None
    knowledge: Knowledge
    steps: int
    progress: Progress

    def removed(self, images: ImageSet, everybody: ImageSet, places: Int64[Tensor, " n"]) -> Removed:
        defense = build_defense(self.scene, self.arm, self.generator, "audited")
        once = protecting_once(defense)
        if once is None:
            return self._with_a_copy(defense, images, everybody, places)
        # As they were drawn: what is trained on is computed from it.
        frozen, knowledge, seed = once.frozen(self.progress), self.knowledge, self.scene.config.seed
        texture, protected = frozen.texture, frozen.protected(images.images)
        removers = removers_for(texture, knowledge, seed=seed, steps=self.steps, progress=self.progress)
        planted = planted_breaks(texture, knowledge, seed=seed, steps=0)
        found = attack(texture, removers, knowledge, protected, images.labels, seed=seed)
        linked = linkage(texture, protected, found.estimates, everybody.unit_images(), places, everybody.groups)
        made = {name: each.estimates for name, each in found.removals.items()}
        return {"as given": protected.clamp(0, 1), **made}, linked, planted

    def _with_a_copy(
        self, defense: Defense, images: ImageSet, everybody: ImageSet, places: Int64[Tensor, " n"]
    ) -> Removed:
        """Of a noise that no formula describes: learnt from public images, protected by a copy of the defense."""
        data, seed = self.scene.dataset, self.scene.config.seed
        public = copied(data.public)
        copy = build_defense(self.scene, self.arm, self.generator, "attacker")
        pairs = pairs_found(self._protected(copy, public), public.unit_images(), public.labels)
        remover = train_remover(
            AsGiven(),
            pairs,
            data.classes,
            seed=seed,
            steps=self.steps,
            progress=self.progress,
            device=self.scene.device,
        )
        protected = self._protected(defense, images)
        made = {"as given": protected.clamp(0, 1), "learned": remover.remove(protected, images.labels).estimates}
        ways = distances(made.values(), everybody.unit_images())
        return made, found_again(ways, places, everybody.groups), {}

    def _protected(self, defense: Defense, images: ImageSet) -> Float[Tensor, "n c h w"]:
        """What a client trains on in the first round, in [0, 1]."""
        scene, training, model = self.scene, self.scene.config.training, self.scene.new_model(self.arm)
        model.to(scene.device).train(training.batch_norm == "train")
        state = {name: tensor.clone() for name, tensor in on_host(model.state_dict()).items()}
        context = RoundContext(model, state, training.loss_function(), 0, training.rounds, training.learning_rate_at(0))
        return protected_by(defense, images, context, scene.dataset.normalisation, self.progress)

"""The task of one attack on one update, and what its attacker sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import LocalTraining, Observation, Reconstruction, observe, randomised
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import FederatedDataset, ImageSet, concatenated
from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Job, Placed, Scene, earlier_rounds
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import attack_key
from shadow_defense.experiment.tasks.pretraining import GENERATOR, Pretraining
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.rounds import read_journal, round_folder, train_again, update_path
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ALL_CLIENTS, ModelUpdate
from shadow_defense.files import read_tensors
from shadow_defense.generators.build import load_generator
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps
from shadow_defense.report.records.scores import RANDOM_UPDATE
from shadow_defense.seeds import seed_for

RECONSTRUCTION = "reconstruction.safetensors"


@dataclass(frozen=True, eq=False)
class Attacking(Task):
    """One attack on one update.

    Attributes:
        training: of the attacked arm; it keeps the update.
        randomised: the control: noise of the update's norms in its place.
    """

    scene: Scene
    job: Job
    training: Task
    randomised: bool = False

    kind = "attack"

    @cached_property
    def key(self) -> str:
        return attack_key(self.scene, self.job, self.training.key, self.randomised)

    @property
    def about(self) -> str:
        job = self.job
        arm = RANDOM_UPDATE if self.randomised else job.arm
        return f"seed {self.scene.config.seed}, {arm}: {job.attack}, round {job.round + 1}, {job.client}"

    def describe(self) -> Mapping[str, Any]:
        settings = self.scene.config.attacks[self.job.attack]
        return {
            "training": self.training.name,
            "attack": settings.attack,
            "settings": _plain(settings.build()),
            "threat_model": settings.threat_model,
            "round": self.job.round + 1,
            "client": self.job.client,
            "randomised": self.randomised,
        }

    def needs(self) -> Sequence[Task]:
        generator = "generator" in self.scene.config.attacks[self.job.attack].build().needs
        return [self.training, *([Pretraining(self.scene)] if generator else [])]

    def steps(self) -> int:
        return self.scene.config.attacks[self.job.attack].build().steps()

    def is_done(self, place: Path) -> bool:
        return (place / RECONSTRUCTION).is_file()

    def compute(self, store: Store, progress: Progress) -> None:
        scene, job = self.scene, self.job
        seen = _Attacked(scene, store.place(self.training), store.place(Pretraining(scene)) / GENERATOR)
        observation = build_observation(seen, job, scene.new_model(job.arm))
        seed = attack_seed(scene, job)
        if self.randomised:
            observation = randomised(observation, seed)
        steps = progress.start("attack", self.steps())
        found = reconstruct(scene.config.attacks[job.attack], observation, seed, steps)
        found.save(store.place(self) / RECONSTRUCTION)


class _Attacked(Placed):
    """A scene whose one attacked training lies in a folder."""

    def __init__(self, scene: Scene, training: Path, generator: Path) -> None:
        super().__init__(scene.config, scene.images)
        self._training, self._generator = training, generator

    def arm_folder(self, arm: str) -> Path:
        return self._training

    @property
    def generator_path(self) -> Path:
        return self._generator


def _plain(attack: Any) -> dict[str, Any]:
    return attack.model_dump(mode="json")


def build_observation(run: Placed, job: Job, model: nn.Module) -> Observation:
    """What the job's attacker sees, cut to its threat model; with the rounds before as far as it uses them."""
    earlier = [
        _observation_of_round(run, replace(job, round=round), model)
        for round in earlier_rounds(run.config.attacks[job.attack], job.round)
        if update_path(run.arm_folder(job.arm), round, job.client).exists()
    ]
    return _observation_of_round(run, job, model, earlier)


def _observation_of_round(run: Placed, job: Job, model: nn.Module, earlier: Sequence[Observation] = ()) -> Observation:
    arm = run.arm_folder(job.arm)
    if read_journal(arm)[0] <= job.round:
        raise RunError(f"arm '{job.arm}' is not at round {job.round + 1} yet: run the stage `train` first")
    hint = train_again(arm)
    global_state, _ = read_tensors(round_folder(arm, job.round) / "global.safetensors", hint)
    update = ModelUpdate.load(update_path(arm, job.round, job.client), hint)
    update.check_against(global_state, absent=withheld_names(model, run.config.arms[job.arm].share_bn))
    return observation_of(run, job, model, global_state, update, run.generator_path, earlier)


def observation_of(
    scene: Scene,
    job: Job,
    model: nn.Module,
    global_state: Mapping[str, Tensor],
    update: ModelUpdate,
    generator: Path,
    earlier: Sequence[Observation] = (),
) -> Observation:
    """What the job's attacker sees of ``update``, which the client computed from ``global_state``.

    Args:
        generator: the shadow generator's file, whether it is there or not.
    """
    data, training, client = scene.dataset, scene.config.training, scene.client(job.client)
    threat = threat_model(scene.config.attacks[job.attack].threat_model)
    looks = "public images" in scene.config.attacks[job.attack].build().needs
    return observe(
        threat,
        model=model,
        loss_fn=training.loss_function(),
        global_state=global_state,
        update=update,
        image_shape=(data.channels, *data.image_size),
        classes=data.classes,
        normalisation=data.normalisation,
        labels=client.train.labels,
        local_training=local_training(training, job.round, client.batch_size, update.steps),
        template=scene.mean_image,
        generator=partial(load_generator, generator) if generator.exists() else None,
        public=data.public if looks else None,
        distribution=others_images(data, job.client) if looks and "data distribution" in threat.granted else None,
        defense=scene.config.arms[job.arm],
        earlier=earlier,
        rounds=training.rounds,
    )


def local_training(training: TrainingSettings, round: int, batch_size: int, steps: int) -> LocalTraining:
    """What an attacker who knows it is told of a client's training in a round (0-based)."""
    return LocalTraining(
        training.learning_rate_at(round),
        batch_size,
        steps,
        training.batch_norm,
        training.momentum,
        training.weight_decay,
        training.optimiser,
        training.betas,
        training.epsilon,
        training.smoothing,
    )


def others_images(data: FederatedDataset, client: str) -> ImageSet:
    """The training images of every other client: what a server holds that they collude with."""
    others = [other.train for other in data.clients if client not in (other.name, ALL_CLIENTS)]
    if not others:
        raise RunError(f"the attack learns from other clients' images and '{client}' leaves none: add clients")
    return concatenated(others)


def reconstruct(settings: AttackSettings, observation: Observation, seed: int, task: Steps) -> Reconstruction:
    """Run an attack, repeatably also where the attacked model draws from the global state (dropout, PRECODE)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settings.build().reconstruct(observation, seed=seed, task=task)


def attack_seed(scene: Scene, job: Job) -> int:
    """Depends on what is attacked, not on the arm: all arms face the same start."""
    return seed_for(scene.config.seed, "attack", job.attack, job.round, job.client)

"""The task of one attack on one update, and what its attacker sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from shadow_defense.attacks.build import reconstruct
from shadow_defense.attacks.misfit import JUDGE, misfit
from shadow_defense.attacks.observation import Observation, Reconstruction, observe, randomised
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import FederatedDataset, ImageSet, concatenated
from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import attack_parts
from shadow_defense.experiment.tasks.pretraining import generator_file, generator_for_attack
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.training_folder import read_journal, round_folder, train_again, update_path
from shadow_defense.federated.update import ALL_CLIENTS, ModelUpdate
from shadow_defense.files import read_tensors
from shadow_defense.generators.build import load_generator
from shadow_defense.progress import Progress
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
    counted = "attack"

    def decided_by(self) -> Mapping[str, object]:
        return attack_parts(self.scene, self.job, self.training.name, self.randomised)

    @property
    def arm(self) -> str:
        """The name in tables: of the attacked arm, or of the control."""
        return RANDOM_UPDATE if self.randomised else self.job.arm

    @property
    def about(self) -> str:
        job = self.job
        return f"seed {self.scene.config.seed}, {self.arm}: {job.attack}, round {job.round + 1}, {job.client}"

    def needs(self) -> Sequence[Task]:
        return [self.training, *generator_for_attack(self.scene, self.job.attack)]

    def steps(self) -> int:
        return self.scene.config.attacks[self.job.attack].build().steps()

    def is_done(self, place: Path) -> bool:
        return (place / RECONSTRUCTION).is_file()

    def compute(self, store: Store, progress: Progress) -> None:
        scene, job = self.scene, self.job
        training, generator = store.place(self.training), generator_file(scene, store)
        sent, seed = read_sent(scene, job, training), attack_seed(scene, job)
        observation = build_observation(scene, job, sent, training, generator)
        judge = observation_of(scene, job, *sent, generator, threat=JUDGE)
        if self.randomised:
            observation, judge = randomised(observation, seed), randomised(judge, seed)
        steps = progress.start(self.counted, self.steps())
        found = reconstruct(scene.config.attacks[job.attack], observation, seed, steps)
        replace(found, misfit=misfit(judge, found, seed)).save(store.place(self) / RECONSTRUCTION)

    def load(self, store: Store) -> Reconstruction:
        """What was rebuilt. Raises :class:`RunError` where it is missing or damaged."""
        return Reconstruction.load(store.place(self) / RECONSTRUCTION)


class Sent(NamedTuple):
    """What a client sent in a round, and the global model from which it computed it."""

    model: nn.Module
    global_state: Mapping[str, Tensor]
    update: ModelUpdate


def read_sent(scene: Scene, job: Job, training: Path) -> Sent:
    """Of the job's arm, client and round, from the folder of the arm's training.

    Raises:
        RunError: where the training is not as far, or has not kept the update.
    """
    hint = train_again(training)
    if read_journal(training)[0] <= job.round:
        raise RunError(f"arm '{job.arm}' is not at round {job.round + 1} yet: run the stage `train` first")
    model = scene.new_model(job.arm).to(scene.device)
    global_state, _ = read_tensors(round_folder(training, job.round) / "global.safetensors", hint)
    update = ModelUpdate.load(update_path(training, job.round, job.client), hint)
    update.check_against(global_state, absent=withheld_names(model, scene.config.arms[job.arm].share_bn))
    return Sent(model, global_state, update)


def build_observation(scene: Scene, job: Job, sent: Sent, training: Path, generator: Path) -> Observation:
    """What the job's attacker sees, cut to its threat model; with the rounds before as far as it uses them.

    Args:
        training: the folder of the attacked arm's training, for the rounds before.
        generator: the shadow generator's file, whether it is there or not.

    Raises:
        RunError: where an update of the rounds before is damaged.
    """
    rounds = scene.config.attacks[job.attack].earlier_rounds(job.round)
    before = [replace(job, round=round) for round in rounds if update_path(training, round, job.client).exists()]
    earlier = [observation_of(scene, each, *read_sent(scene, each, training), generator) for each in before]
    return observation_of(scene, job, *sent, generator, earlier)


def observation_of(
    scene: Scene,
    job: Job,
    model: nn.Module,
    global_state: Mapping[str, Tensor],
    update: ModelUpdate,
    generator: Path,
    earlier: Sequence[Observation] = (),
    threat: str | None = None,
) -> Observation:
    """What the job's attacker sees of ``update``, which the client computed from ``global_state``.

    Args:
        generator: the shadow generator's file, whether it is there or not.
        threat: the name of another threat model than the attacker's.
    """
    data, training, client = scene.dataset, scene.config.training, scene.client(job.client)
    granted = threat_model(threat or scene.config.attacks[job.attack].threat_model)
    looks = "public images" in scene.config.attacks[job.attack].build().needs
    return observe(
        granted,
        model=model,
        loss_fn=training.loss_function(),
        global_state=global_state,
        update=update,
        image_shape=(data.channels, *data.image_size),
        classes=data.classes,
        normalisation=data.normalisation,
        labels=client.train.labels,
        local_training=LocalTraining.of(training, job.round, client.batch_size, update.steps),
        template=scene.mean_image,
        usual_contrast=scene.usual_contrast,
        generator=partial(load_generator, generator) if generator.exists() else None,
        public=data.public if looks else None,
        distribution=others_images(data, job.client) if looks and "data distribution" in granted.granted else None,
        defense=scene.config.arms[job.arm],
        earlier=earlier,
        rounds=training.rounds,
    )


def others_images(data: FederatedDataset, client: str) -> ImageSet:
    """The training images of every other client: what a server holds that they collude with."""
    others = [other.train for other in data.clients if client not in (other.name, ALL_CLIENTS)]
    if not others:
        raise RunError(f"the attack learns from other clients' images and '{client}' leaves none: add clients")
    return concatenated(others)


def attack_seed(scene: Scene, job: Job) -> int:
    """Depends on what is attacked, not on the arm: all arms face the same start."""
    return seed_for(scene.config.seed, "attack", job.attack, job.round, job.client)

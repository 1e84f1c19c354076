"""The stage ``attack``: every chosen update of every arm, attacked in parallel processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import LocalTraining, Observation, Reconstruction, observe
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import FederatedDataset, ImageSet, concatenated
from shadow_defense.errors import RunError
from shadow_defense.experiment.run import Run, earlier_rounds
from shadow_defense.experiment.workers import Call, CountingTask, run_parallel, worker_count
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.rounds import read_journal, round_folder, train_again, update_path
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ALL_CLIENTS, ModelUpdate
from shadow_defense.files import read_tensors
from shadow_defense.generators.build import load_generator
from shadow_defense.progress import Progress, Task
from shadow_defense.seeds import seed_for


@dataclass(frozen=True)
class Job:
    """One attack on one update; ``round`` is 0-based."""

    arm: str
    attack: str
    round: int
    client: str


def jobs(run: Run) -> list[Job]:
    """Every attack that the configuration asks for."""
    updates = {attack: run.attacked_updates(attack) for attack in run.config.attacks}
    return [
        Job(arm, attack, round, client.name)
        for attack in updates
        for arm in run.config.arms
        for round, client in updates[attack]
    ]


def build_observation(run: Run, job: Job, model: nn.Module) -> Observation:
    """What the job's attacker sees, cut to its threat model; with the rounds before as far as it uses them."""
    earlier = [
        _observation_of_round(run, replace(job, round=round), model)
        for round in earlier_rounds(run.config.attacks[job.attack], job.round)
        if update_path(run.arm_folder(job.arm), round, job.client).exists()
    ]
    return _observation_of_round(run, job, model, earlier)


def _observation_of_round(run: Run, job: Job, model: nn.Module, earlier: Sequence[Observation] = ()) -> Observation:
    arm = run.arm_folder(job.arm)
    if read_journal(arm)[0] <= job.round:
        raise RunError(
            f"arm '{job.arm}' is not at round {job.round + 1} yet: run `shadow-defense train {run.folder}` first"
        )
    mend = train_again(arm)
    global_state, _ = read_tensors(round_folder(arm, job.round) / "global.safetensors", mend)
    update = ModelUpdate.load(update_path(arm, job.round, job.client), mend)
    update.check_against(global_state, absent=withheld_names(model, run.config.arms[job.arm].share_bn))
    return observation_of(run, job, model, global_state, update, earlier)


def observation_of(
    run: Run,
    job: Job,
    model: nn.Module,
    global_state: Mapping[str, Tensor],
    update: ModelUpdate,
    earlier: Sequence[Observation] = (),
) -> Observation:
    """What the job's attacker sees of ``update``, which the client computed from ``global_state``."""
    data, training, client = run.dataset, run.config.training, run.client(job.client)
    threat = threat_model(run.config.attacks[job.attack].threat_model)
    # Images travel to the process that attacks: only where it looks at them.
    looks = "public images" in run.config.attacks[job.attack].build().needs
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
        template=run.mean_image,
        generator=partial(load_generator, run.generator_path) if run.generator_path.exists() else None,
        public=data.public if looks else None,
        distribution=others_images(data, job.client) if looks and "data distribution" in threat.granted else None,
        defense=run.config.arms[job.arm],
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


def reconstruct(settings: AttackSettings, observation: Observation, seed: int, task: Task) -> Reconstruction:
    """Run an attack, repeatably also where the attacked model draws from the global state (dropout, PRECODE)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settings.build().reconstruct(observation, seed=seed, task=task)


def _attack(settings: AttackSettings, observation: Observation, seed: int) -> Reconstruction:
    return reconstruct(settings, observation, seed, CountingTask())


def attack_seed(run: Run, job: Job) -> int:
    """Depends on what is attacked, not on the arm: all arms face the same start."""
    return seed_for(run.config.seed, "attack", job.attack, job.round, job.client)


def attack_stage(run: Run, progress: Progress | None = None) -> None:
    """Run the attacks whose reconstruction is not there yet."""
    waiting = [
        job for job in jobs(run) if not run.reconstruction_path(job.arm, job.attack, job.round, job.client).exists()
    ]
    if not waiting:
        return
    for job in waiting:
        # Here, so that it is said before hours of other attacks.
        if "generator" in run.config.attacks[job.attack].build().needs and not run.generator_path.exists():
            raise RunError(
                f"attack '{job.attack}' starts from a generator and {run.folder} has none: run "
                f"`shadow-defense pretrain {run.folder}` first"
            )

    def calls() -> Iterator[tuple[Job, Call]]:
        for job in waiting:
            observation = build_observation(run, job, run.new_model(job.arm))
            yield job, Call(_attack, (run.config.attacks[job.attack], observation, attack_seed(run, job)))

    def save(job: Job, found: Reconstruction) -> None:
        found.save(run.reconstruction_path(job.arm, job.attack, job.round, job.client))

    run_parallel(
        calls(),
        workers=worker_count(run.config.workers, len(waiting)),
        threads=run.config.threads,
        name=f"attacking {len(waiting)} updates",
        total_steps=sum(run.config.attacks[job.attack].build().steps() for job in waiting),
        progress=progress or Progress(),
        finished=save,
    )

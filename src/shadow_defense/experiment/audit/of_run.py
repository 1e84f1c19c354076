"""An update of a run directory as a case: its model, generator, images and labels are at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import Observation
from shadow_defense.errors import RunError, unknown_name
from shadow_defense.experiment.audit.case import Case, Gallery, chosen_attacks
from shadow_defense.experiment.described import arm_titles
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.attacking import attack_seed
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.training_folder import kept_updates, update_path


def case_of_run(
    folder: Path,
    *,
    arm: str | None,
    round: int | None,
    client: str | None,
    attacks: tuple[str, ...],
    threat_model: str | None,
    iterations: int | None,
) -> Case:
    """The case of one kept update of a finished or running run.

    Args:
        arm: None: the first.
        round: counted from 1; None: the first that was kept.
        client: None: the first that was kept.
        attacks: names; none: the run's first.

    Raises:
        RunError: when there is no such run, arm, or kept update, or an attack needs a generator and there is none.
    """
    _check_configured(folder)
    opened = Run.open(folder)
    names = attacks or (next(iter(opened.config.attacks), "inverting-gradients"),)
    chosen = chosen_attacks(opened.config, names, threat_model, iterations)
    # The run as it would be with just these attacks: observations and seeds come from it.
    run = Run(folder, opened.config.model_copy(update={"attacks": chosen}))
    titles = arm_titles(run.config.arms)
    # Pages call an arm by its title.
    arm = next(iter(titles)) if arm is None else {title: name for name, title in titles.items()}.get(arm, arm)
    if arm not in titles:
        raise RunError(unknown_name("arm", arm, run.config.arms))
    place, client = _kept(run, arm, None if round is None else round - 1, client)
    _check_generators(run, chosen)
    jobs = {name: Job(arm, name, place, client) for name in chosen}
    data, training = run.dataset, run.config.training
    attacked = run.client(client)
    first = run.observation(jobs[names[0]])

    def observe(attack: str) -> Observation:
        return run.observation(jobs[attack])

    count = len(attacked.train)
    steps = training.steps(count, attacked.batch_size)
    return Case(
        name=f"{client} in round {place + 1}: {titles[arm]}",
        subject={"run": str(folder), "arm": arm, "title": titles[arm], "round": place + 1, "client": client},
        config=run.config,
        attacks=chosen,
        observe=observe,
        seed=lambda attack: attack_seed(run, jobs[attack]),
        local_training=LocalTraining.of(training, place, attacked.batch_size, first.update.steps or steps),
        optimiser=training.optimiser,
        loss=training.loss,
        truths=attacked.train.unit_images(),
        mean_image=run.mean_image,
        gallery=_gallery(run, client),
        notes=(
            f"The update is kept from the run {folder}: client '{client}' of arm '{arm}' in round {place + 1}, "
            f"computed from {count} image{'s' if count > 1 else ''} of {data.name}.",
        ),
    )


def _check_configured(folder: Path) -> None:
    """Raises :class:`RunError` for updates without a configuration, as an auditor of a training of others records."""
    recorded = kept_updates(folder)
    if recorded and not (folder / "config.yaml").exists():
        update = update_path(folder, *recorded[0])
        raise RunError(
            f"{folder} holds recorded updates and no config.yaml that says of which model: audit one of them with "
            f"--model FILE.yaml --global {update.parent / 'global.safetensors'} --update {update}"
        )


def _kept(run: Run, arm: str, round: int | None, client: str | None) -> tuple[int, str]:
    """Round (0-based) and client of the update that is meant; raises :class:`RunError` listing what was kept."""
    found = kept_updates(run.arm_folder(arm))
    if not found:
        raise RunError(f"arm '{arm}' has kept no update yet: run `shadow-defense train {run.folder}` first")
    for kept in found:
        if round in (None, kept[0]) and client in (None, kept[1]):
            return kept
    rounds = ", ".join(str(number + 1) for number in sorted({number for number, _ in found}))
    clients = ", ".join(sorted({name for _, name in found}))
    asked = " ".join(
        f"{flag} {value}"
        for flag, value in (("--round", round and round + 1), ("--client", client))
        if value is not None
    )
    raise RunError(f"arm '{arm}' kept no update for {asked}: kept are rounds {rounds} and clients {clients}")


def _check_generators(run: Run, attacks: dict[str, AttackSettings]) -> None:
    for name, settings in attacks.items():
        if settings.needs_generator and not run.generator_path.exists():
            raise RunError(
                f"attack '{name}' starts from a generator and {run.folder} has none: run `shadow-defense pretrain "
                f"{run.folder}` first"
            )


def _gallery(run: Run, client: str) -> Gallery | None:
    """All clients' training and validation images, as published; None where the client is alone, or is all as one."""
    own: list[Tensor] = []
    others: list[Tensor] = []
    for each in run.dataset.clients:
        images = [part.unit_images() for part in (each.train, each.validation) if len(part)]
        (own if each.name == client else others).extend(images)
    return Gallery(torch.cat(own), torch.cat(others)) if own and others else None

"""The stages ``pretrain`` and ``train``: the shadow generator, then one federated training for each arm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import Resources
from shadow_defense.errors import GeneratorError, RunError
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.workers import Call, CountingProgress, run_parallel, worker_count
from shadow_defense.federated.batch_norm_policy import check_public_images, lacks_statistics
from shadow_defense.federated.rounds import TRAINING, Federation, read_journal
from shadow_defense.files import atomic_path
from shadow_defense.generators.build import architecture, load_generator
from shadow_defense.generators.interface import Generator, check_generator
from shadow_defense.generators.training import pretrain
from shadow_defense.metrics.lpips import load_lpips
from shadow_defense.metrics.utility import utility_from_logits
from shadow_defense.models.functional import training_mode
from shadow_defense.progress import Progress


def needs_generator(run: Run) -> bool:
    """Whether any arm's defense, or any attack, asks for a generator."""
    defenses = any(arm.kind().needs_generator for arm in run.config.arms.values())
    return defenses or any("generator" in attack.build().needs for attack in run.config.attacks.values())


def check_run(run: Run) -> None:
    """Raise now what a later stage would raise after hours: the model, the attacked clients, the weights of LPIPS."""
    for name, arm in run.config.arms.items():
        if lacks_statistics(run.new_model(name), arm.share_bn, run.config.training.batch_norm):
            check_public_images(run.dataset.public.images, arm.share_bn)
    for attack in run.config.attacks:
        run.attacked_updates(attack)
    _check_latent_spaces(run)
    metrics = run.config.metrics
    if metrics.lpips:
        load_lpips(metrics.lpips, metrics.lpips_weights)


def _check_latent_spaces(run: Run) -> None:
    settings = run.config.generator
    spaces = (
        architecture(settings.name).generator().latent_spaces
        if settings.path is None
        else load_generator(settings.path).latent_spaces
    )
    for name, arm in run.config.arms.items():
        for part in arm.parts().values():
            space = getattr(part, "latent_space", None)
            if space is not None and space not in spaces:
                raise GeneratorError(
                    f"arm '{name}' asks for latent_space={space} but the generator has {', '.join(spaces)}: choose one "
                    "of them, or a StyleGAN3 generator"
                )


def pretrain_stage(run: Run, progress: Progress | None = None) -> None:
    """Train the shadow generator on the public images, or take the one that the configuration names."""
    if not needs_generator(run) or run.generator_path.exists():
        return
    check_run(run)
    settings = run.config.generator
    if settings.path is None:
        pretrain(
            settings,
            run.dataset.public.images,
            seed=run.config.seed,
            folder=run.generator_path.parent,
            progress=progress,
        )
        return
    check_generator(load_generator(settings.path), run.dataset.channels, run.dataset.image_size)
    with atomic_path(run.generator_path) as temporary:
        shutil.copyfile(settings.path, temporary)


def load_run_generator(run: Run) -> Generator | None:
    if not needs_generator(run):
        return None
    if not run.generator_path.exists():
        raise RunError(f"{run.folder} has no shadow generator yet: run `shadow-defense pretrain {run.folder}` first")
    generator = load_generator(run.generator_path)
    check_generator(generator, run.dataset.channels, run.dataset.image_size)
    return generator


@torch.no_grad()
def predict(model: nn.Module, images: ImageSet, normalisation: Normalisation, batch_size: int = 256) -> torch.Tensor:
    """Logits (n, classes) of a whole set, in eval mode."""
    with training_mode(model, False):
        return torch.cat([model(normalisation.apply(chunk.float() / 255)) for chunk in images.images.split(batch_size)])


def evaluation(run: Run, model: nn.Module) -> dict[str, Any]:
    """The task metrics of the global model on all clients' validation images, and on the test images."""
    data = run.dataset
    sets = {"validation": [client.validation for client in data.clients], "test": [data.test]}
    measured = {}
    for name, parts in sets.items():
        present = [part for part in parts if len(part)]
        if present:
            logits = torch.cat([predict(model, part, data.normalisation) for part in present])
            measured[name] = utility_from_logits(logits, torch.cat([part.labels for part in present]))
    return measured


def build_defense(
    run: Run, arm: str, generator: Generator | None, client: str, *, secret_seed: int | None = None
) -> Defense:
    """A client's fresh defense; its draws follow from the run's seed, or from one that only the client knows."""
    data, seed = run.dataset, run.config.seed if secret_seed is None else secret_seed
    return run.config.arms[arm].build(Resources(generator, data.normalisation, data.public, data.classes, client, seed))


def train_arm(run: Run, arm: str, progress: Progress | None = None) -> None:
    """Train one arm, or go on with it; every arm starts from the same model, on the same data in the same order."""
    generator = load_run_generator(run)
    defenses = {client.name: build_defense(run, arm, generator, client.name) for client in run.dataset.clients}
    Federation(
        model=run.new_model(arm),
        dataset=run.dataset,
        defenses=defenses,
        settings=run.config.training,
        loss_fn=run.config.training.loss_function(),
        evaluate=lambda model: evaluation(run, model),
        seed=run.config.seed,
        folder=run.arm_folder(arm),
        keep=run.kept(),
        share_bn=run.config.arms[arm].share_bn,
    ).run(progress)


def _any_run(run: Run) -> None:
    """The engine carries every run."""


@dataclass(frozen=True)
class Engine:
    """What carries a training from round to round.

    Attributes:
        train_arm: trains one arm of a run, or goes on with it; a new process can import it.
        check: raises :class:`RunError` where the engine is not installed.
        check_run: raises :class:`RunError` for a run that the engine cannot carry, before anything is computed.
        arms_at_once: whether arms are trained in parallel; an engine that fills the machine by itself takes one by one.
    """

    train_arm: Callable[[Run, str, Progress], None]
    check: Callable[[], None]
    arms_at_once: bool
    check_run: Callable[[Run], None] = _any_run


def _always_installed() -> None:
    """The engine needs nothing but this package."""


IN_PROCESS = Engine(train_arm, _always_installed, arms_at_once=True)
"""All clients of an arm in turn, in one process."""


def _train_arm_in_worker(folder: Path, arm: str, train: Callable[[Run, str, Progress], None]) -> None:
    train(Run.open(folder), arm, CountingProgress(TRAINING))


def train_stage(run: Run, progress: Progress | None = None, engine: Engine = IN_PROCESS) -> None:
    """Train the arms that are not finished, each in a process of its own."""
    waiting = [arm for arm in run.config.arms if rounds_done(run, arm) < run.config.training.rounds]
    if not waiting:
        return
    # Here, so that what is wrong is said once and at once, not by every process.
    check_run(run)
    engine.check_run(run)
    generator, client = load_run_generator(run), run.dataset.clients[0].name
    for arm in waiting:
        build_defense(run, arm, generator, client).check_model(run.new_model(arm))
    run_parallel(
        ((arm, Call(_train_arm_in_worker, (run.folder, arm, engine.train_arm))) for arm in waiting),
        workers=worker_count(run.config.workers, len(waiting)) if engine.arms_at_once else 1,
        threads=run.config.threads,
        name=f"training {len(waiting)} arms, rounds",
        total_steps=len(waiting) * run.config.training.rounds,
        progress=progress or Progress(),
        finished=lambda arm, result: None,
    )


def rounds_done(run: Run, arm: str) -> int:
    """How many whole rounds of an arm are on disk."""
    return read_journal(run.arm_folder(arm))[0]

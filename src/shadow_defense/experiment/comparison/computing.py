"""What a worker process does for one cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shadow_defense.attacks.observation import randomised
from shadow_defense.experiment.attacking import Job, attack_seed, build_observation, reconstruct
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, grid_run
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.training import pretrain_stage, train_arm
from shadow_defense.experiment.workers import CountingProgress, CountingTask
from shadow_defense.federated.rounds import TRAINING
from shadow_defense.generators.training import PRETRAINING


def pretrain_cell(folder: Path, grid: Grid, model: str, seed: int) -> None:
    """Train the shadow generator of one model and seed."""
    pretrain_stage(grid_run(folder, grid, model, seed), CountingProgress(PRETRAINING))


def train_cell(folder: Path, grid: Grid, model: str, seed: int, arm: str, weight: int) -> None:
    """Train one arm, or go on with it; a round counts ``weight``."""
    train_arm(grid_run(folder, grid, model, seed), arm, CountingProgress(TRAINING, weight))


def attack_cell(folder: Path, grid: Grid, model: str, seed: int, job: Job, weight: int) -> None:
    """Attack one update, or noise in its place; a step counts ``weight``."""
    run = grid_run(folder, grid, model, seed)
    source = run.reference if job.arm == RANDOM_UPDATE else job.arm
    observation = build_observation(run, replace(job, arm=source), run.new_model(source))
    if job.arm == RANDOM_UPDATE:
        observation = randomised(observation, attack_seed(run, job))
    found = reconstruct(run.config.attacks[job.attack], observation, attack_seed(run, job), CountingTask(weight))
    found.save(run.reconstruction_path(job.arm, job.attack, job.round, job.client))

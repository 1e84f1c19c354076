"""What a calibration measures with: a short run for each candidate and seed, on one generator for each seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.calibration.bisection import (
    DIGITS,
    Calibration,
    CalibrationSettings,
    Leakage,
    calibrate,
)
from shadow_defense.experiment.calibration.scores import Scores, leakage_of, leaked, mean_image_scores, stored_scores
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.stages import STAGES
from shadow_defense.experiment.training import check_run, train_arm
from shadow_defense.experiment.workers import Call, CountingProgress, run_parallel, worker_count
from shadow_defense.federated.rounds import TRAINING, read_journal
from shadow_defense.generators.training import pretrain
from shadow_defense.progress import Progress
from shadow_defense.shadow.noise import Schedule, noise_amplitude

UNDEFENDED, DEFENDED = "fedavg", "shadow"
"""Names of the one arm in a run without defense, and in a candidate's."""


@dataclass(frozen=True)
class Measurement:
    """One setting, trained and attacked with every seed.

    Attributes:
        leakage: by metric.
        f1: macro F1 on the test images after the last round, by seed.
        seconds: of training and attacking, all seeds together, on the machine that ran them.
    """

    strength: float
    leakage: Mapping[str, Leakage]
    f1: tuple[float, ...]
    seconds: float


class CalibrationRuns:
    """The runs below one folder: ``undefended/seed-0``, ``growing/strength-0.3500/seed-0`` and so on.

    Every one is a run directory, so that a calibration that was killed goes on where it stopped, and so that
    `shadow-defense report` draws any of them. The undefended arm is trained once for all schedules. Each seed has a
    generator of its own (``generator/seed-0``), pre-trained once: the seed decides which images are public, and
    a generator must not have seen the clients' images of another seed.

    Args:
        config: attacks, data, model and training; its arms give the Shadow settings that the strength is changed in.
    """

    def __init__(
        self, folder: Path, config: RunConfig, settings: CalibrationSettings, progress: Progress | None = None
    ) -> None:
        self.folder, self.settings, self.progress = folder, settings, progress or Progress()
        if not config.attacks:
            raise ConfigError("the configuration has no attack to calibrate against: add one under attacks")
        self.attack = settings.attack or next(iter(config.attacks))
        if self.attack not in config.attacks:
            raise ConfigError(unknown_name("attack of the configuration", self.attack, config.attacks))
        arms = [arm for arm in config.arms.values() if arm.defense == "shadow"]
        self.shadow = arms[0] if arms else DefenseSettings(defense="shadow")
        # Which statistics are sent stays as it is: only the noise is what a candidate has and this has not.
        self.plain = DefenseSettings(share_bn=self.shadow.share_bn)
        self.config = config.model_copy(
            update={
                "attacks": {self.attack: config.attacks[self.attack]},
                "metrics": config.metrics.model_copy(update={"lpips": None}),
            }
        )

    @property
    def seeds(self) -> range:
        """The configuration's seed and those that follow."""
        return range(self.config.seed, self.config.seed + self.settings.seeds)

    @cached_property
    def probes(self) -> list[Run]:
        """For each seed a run that is never written: its data, and what can be checked before anything is trained."""
        arms = {UNDEFENDED: self.plain, DEFENDED: self.shadow}
        return [Run(self.folder, self.config.model_copy(update={"seed": seed, "arms": arms})) for seed in self.seeds]

    @cached_property
    def prior(self) -> list[dict[str, Scores]]:
        """For each seed and attacked image, how close the mean image comes: ``psnr`` and ``ssim``."""
        return [mean_image_scores(probe, self.attack) for probe in self.probes]

    @cached_property
    def generators(self) -> list[Path]:
        """For each seed the file of its shadow generator, pre-trained now where it is not there."""
        return [self._generator(probe) for probe in self.probes]

    def mean_image(self) -> dict[str, Leakage]:
        """By metric, what an attacker reaches who never looks at an update; nothing is trained for it."""
        return leakage_of({1: [leaked(scores, scores) for scores in self.prior]})

    def check(self) -> None:
        """Refuse what cannot be calibrated before anything is trained.

        Raises:
            ConfigError: when fewer than two images are attacked, or the target asks for less than the mean image shows.
        """
        for probe in self.probes:
            check_run(probe)
        images = {image for seed in self.prior for image in seed}
        if len(images) < 2:
            raise ConfigError(
                f"'{self.attack}' is tried on {len(images)} image: an interval needs two at least; attack more clients "
                f"(attacks.{self.attack}.longest_client, clients) or give more seeds"
            )
        target, blank = self.settings.target, self.mean_image()
        if target.metric not in blank:
            raise ConfigError(
                "rdlv is a share of the mean image's SSIM, which is not above 0 on these images: give a target in ssim "
                "or psnr"
            )
        if target.value <= blank[target.metric].mean:
            raise ConfigError(
                f"target {target.metric}={target.value:g} is out of reach: the mean of the public images, which an "
                f"attacker has who never looks at an update, reaches {blank[target.metric].mean:.3g} on the attacked "
                "images; give a target above that"
            )

    def undefended(self) -> Measurement:
        """Train, attack and score without defense, or read what is there."""
        needed = "generator" in self.config.attacks[self.attack].build().needs
        return self._measure(0.0, self._runs("undefended", UNDEFENDED, self.plain, needed), UNDEFENDED)

    def measure(self, strength: float, schedule: Schedule) -> Measurement:
        """Train, attack and score one candidate, or read what is there; strength 0 is the undefended arm."""
        if strength == 0:
            return self.undefended()
        place = f"{schedule}/strength-{strength:.{DIGITS}f}"
        return self._measure(strength, self._runs(place, DEFENDED, self.defense(strength, schedule), True), DEFENDED)

    def defense(self, strength: float, schedule: Schedule) -> DefenseSettings:
        """The configuration's Shadow arm with this strength and schedule."""
        options = {**self.shadow.options, "strength": strength, "schedule": schedule}
        return self.shadow.model_copy(update={"options": options})

    def calibrate(
        self, schedule: Schedule, told: Callable[[Schedule, Measurement], None]
    ) -> tuple[Calibration, dict[float, Measurement]]:
        """Bisect one schedule; ``told`` hears every measurement. Also returns all that was measured."""
        measurements: dict[float, Measurement] = {}

        def leakage(strength: float) -> Leakage:
            measurements[strength] = self.measure(strength, schedule)
            told(schedule, measurements[strength])
            return measurements[strength].leakage[self.settings.target.metric]

        chosen = self.settings
        found = calibrate(leakage, chosen.target.value, most=chosen.most, tolerance=chosen.tolerance)
        return found, dict(sorted(measurements.items()))

    def _generator(self, probe: Run) -> Path:
        settings = probe.config.generator
        if settings.path is not None:
            return settings.path
        folder = self.folder / "generator" / f"seed-{probe.config.seed}"
        path = folder / "generator.safetensors"
        if not path.exists():
            public = probe.dataset.public.images
            pretrain(settings, public, seed=probe.config.seed, folder=folder, progress=self.progress)
        return path

    def _runs(self, place: str, arm: str, defense: DefenseSettings, generator: bool) -> list[Run]:
        runs = []
        for index, seed in enumerate(self.seeds):
            update: dict[str, Any] = {"seed": seed, "arms": {arm: defense}, "title": f"{self.config.title}: {place}"}
            if generator:
                update["generator"] = self.config.generator.model_copy(update={"path": self.generators[index]})
            runs.append(Run.create(self.folder / place / f"seed-{seed}", self.config.model_copy(update=update)))
        return runs

    def _measure(self, strength: float, runs: Sequence[Run], arm: str) -> Measurement:
        self._finish(runs, arm)
        values: dict[int, list[dict[str, Scores]]] = {}
        f1, seconds = [], 0.0
        for run, prior in zip(runs, self.prior, strict=True):
            for score in stored_scores(run, arm):
                images = {
                    row["sample_id"]: {"psnr": row["psnr_whole"], "ssim": row["ssim_whole"]}
                    for row in score["rows"]
                    if row["sample_id"] is not None
                }
                values.setdefault(score["round"] + 1, []).append(leaked(images, prior))
                seconds += score["seconds"]
            history = read_journal(run.arm_folder(arm))[1]
            f1.append(history[-1]["test"]["f1_macro"])
            seconds += sum(entry["seconds"] for entry in history)
        return Measurement(strength, leakage_of(values), tuple(f1), seconds)

    def _finish(self, runs: Sequence[Run], arm: str) -> None:
        waiting = [run for run in runs if read_journal(run.arm_folder(arm))[0] < run.config.training.rounds]
        for run in waiting:
            check_run(run)
        for run in runs:
            if not run.results_path.exists():
                STAGES["pretrain"](run, self.progress)
        if waiting:
            # One process a seed: `train` would give each run of one arm a single process, one after the other.
            run_parallel(
                _training(waiting, arm),
                workers=worker_count(self.config.workers, len(waiting)),
                threads=self.config.threads,
                name=f"training {len(waiting)} seeds, rounds",
                total_steps=len(waiting) * self.config.training.rounds,
                progress=self.progress,
                finished=lambda folder, result: None,
            )
        for run in runs:
            if not run.results_path.exists():
                STAGES["attack"](run, self.progress)
                STAGES["evaluate"](run, self.progress)


def _train_in_worker(folder: Path, arm: str) -> None:
    train_arm(Run.open(folder), arm, CountingProgress(TRAINING))


def _training(runs: Sequence[Run], arm: str) -> Iterator[tuple[Path, Call]]:
    return ((run.folder, Call(_train_in_worker, (run.folder, arm))) for run in runs)


def mean_amplitude(config: RunConfig, strength: float, schedule: Schedule) -> float:
    """The noise's amplitude averaged over the rounds of the training: what tells which setting is weaker."""
    rounds = config.training.rounds
    return statistics.fmean(noise_amplitude(round, rounds, strength, schedule=schedule) for round in range(rounds))

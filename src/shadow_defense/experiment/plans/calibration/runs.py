"""What a calibration measures with: for each candidate and seed a training, attacks, and how much each image leaked."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.plans.calibration.bisection import CalibrationSettings, calibrate, worst_round
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.trial import Trial
from shadow_defense.experiment.work import Workers
from shadow_defense.metrics.confidence import paired_difference
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.limit import TARGET_RANGES
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.progress import Progress
from shadow_defense.report.records.calibration import Leakage, ScheduleEntry, Strength
from shadow_defense.shadow.noise import Schedule, noise_amplitude

UNDEFENDED, DEFENDED = "fedavg", "shadow"
"""Names of the one arm in a scene without defense, and in a candidate's."""


class Calibrating:
    """The measurements of one calibration, in one store.

    The undefended arm is trained once for all schedules. Each seed has a generator of its own, pre-trained once: the
    seed decides which images are public, and a generator must not have seen the clients' images of another seed.

    Attributes:
        computed: the tasks behind all measurements so far.

    Args:
        config: attacks, data, model and training; its arms give the Shadow settings that the strength is changed in.
    """

    def __init__(
        self, folder: Path, config: RunConfig, settings: CalibrationSettings, progress: Progress | None = None
    ) -> None:
        self.store, self.settings, self.progress = Store(folder), settings, progress or Progress()
        if not config.attacks:
            raise ConfigError("the configuration has no attack to calibrate against: add one under attacks")
        self.attack = settings.attack or next(iter(config.attacks))
        if self.attack not in config.attacks:
            raise ConfigError(unknown_name("attack of the configuration", self.attack, config.attacks))
        arms = [arm for arm in config.arms.values() if arm.defense == "shadow"]
        self.shadow = arms[0] if arms else DefenseSettings(defense="shadow")
        # Which statistics are sent stays as it is: only the noise is what a candidate has and this has not.
        self.plain = DefenseSettings(share_bn=self.shadow.share_bn)
        self.computed: list[Scoring] = []
        attacks = {self.attack: config.attacks[self.attack]}
        metrics = config.metrics.model_copy(update={"lpips": None})
        self.config = config.model_copy(update={"attacks": attacks, "metrics": metrics}).with_absolute_paths()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that were asked for, or the configuration's and the next."""
        return self.settings.seeds or (self.config.seed, self.config.seed + 1)

    @cached_property
    def probes(self) -> list[Trial]:
        """For each seed what can be checked before anything is trained: its data, with both arms."""
        arms = {UNDEFENDED: self.plain, DEFENDED: self.shadow}
        return [Trial(self.config.model_copy(update={"seed": seed, "arms": arms}), self.store) for seed in self.seeds]

    @cached_property
    def prior(self) -> list[dict[str, Scores]]:
        """For each seed and attacked image, how close the mean image comes: ``psnr`` and ``ssim``."""
        return [mean_image_scores(probe, self.attack) for probe in self.probes]

    def mean_image(self) -> dict[str, Leakage]:
        """By metric, what an attacker reaches who never looks at an update; nothing is trained for it."""
        return leakage_of({1: [leaked(scores, scores) for scores in self.prior]})

    def check(self) -> None:
        """Refuse what cannot be calibrated before anything is trained.

        Raises:
            ConfigError: when fewer than two images are attacked, or the target asks for less than the mean image shows.
        """
        for probe in self.probes:
            probe.check()
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
                f"target {target} is out of reach: the mean of the public images, which an "
                f"attacker has who never looks at an update, reaches {blank[target.metric].mean:.3g} on the attacked "
                "images; give a target above that"
            )

    @cached_property
    def undefended(self) -> Strength:
        """Train, attack and score without defense, or read what is there."""
        return self._measure(0.0, 0.0, UNDEFENDED, self.plain)

    def measure(self, strength: float, schedule: Schedule) -> Strength:
        """Train, attack and score one candidate, or read what is there; strength 0 is the undefended arm."""
        if strength == 0:
            return self.undefended
        amplitude = mean_amplitude(self.config, strength, schedule)
        return self._measure(strength, amplitude, DEFENDED, self.defense(strength, schedule))

    def defense(self, strength: float, schedule: Schedule) -> DefenseSettings:
        """The configuration's Shadow arm with this strength and schedule."""
        options = {**self.shadow.options, "strength": strength, "schedule": schedule}
        return self.shadow.model_copy(update={"options": options})

    def calibrate(self, schedule: Schedule, on_measurement: Callable[[Schedule, Strength], None]) -> ScheduleEntry:
        """Bisect one schedule; ``on_measurement`` hears every measurement as it comes."""
        measurements: dict[float, Strength] = {}

        def leakage(strength: float) -> Leakage:
            measurements[strength] = self.measure(strength, schedule)
            on_measurement(schedule, measurements[strength])
            return measurements[strength].leakage[self.settings.target.metric]

        chosen = self.settings
        points, found = calibrate(leakage, chosen.target.value, most=chosen.most, tolerance=chosen.tolerance)
        return ScheduleEntry(**vars(found), measurements=tuple(measurements[strength] for strength in points))

    def scorings_of(self, strength: float, schedule: Schedule) -> list[Scoring]:
        """Of a measured setting, with the first seed."""
        if strength == 0:
            return _of_arms(self._trial(self.probes[0], UNDEFENDED, self.plain))
        return _of_arms(self._trial(self.probes[0], DEFENDED, self.defense(strength, schedule)))

    def _trial(self, probe: Trial, arm: str, defense: DefenseSettings) -> Trial:
        return probe.varied(probe.config.model_copy(update={"arms": {arm: defense}}))

    def _measure(self, strength: float, amplitude: float, arm: str, defense: DefenseSettings) -> Strength:
        trials = [self._trial(probe, arm, defense) for probe in self.probes]
        tasks = [_of_arms(trial) for trial in trials]
        self.computed += itertools.chain(*tasks)
        workers = Workers(self.config.workers, self.config.threads)
        title = "no defense" if strength == 0 else f"strength {strength:g}"
        carry_out(list(itertools.chain(*tasks)), self.store, workers, self.progress, name=title)
        values: dict[int, list[Mapping[str, Scores]]] = {}
        f1, seconds = [], 0.0
        for trial, scorings, prior in zip(trials, tasks, self.prior, strict=True):
            for score in (scoring.load(self.store) for scoring in scorings):
                images = {
                    sample: {"psnr": row.metrics["psnr_whole"], "ssim": row.metrics["ssim_whole"]}
                    for sample, row in score.matched().items()
                }
                values.setdefault(score.round + 1, []).append(leaked(images, prior))
                seconds += score.seconds or 0.0
            history = trial.history(arm)
            f1.append(history[-1].test["f1_macro"] or 0.0)
            seconds += sum(entry.seconds or 0.0 for entry in history)
        return Strength(
            strength=strength,
            mean_amplitude=amplitude,
            leakage=leakage_of(values),
            f1=tuple(f1),
            f1_difference=paired_difference(f1, f1 if arm == UNDEFENDED else self.undefended.f1),
            seconds=seconds,
        )


def _of_arms(trial: Trial) -> list[Scoring]:
    return [scoring for scoring in trial.scorings if not scoring.mean_image]


def mean_amplitude(config: RunConfig, strength: float, schedule: Schedule) -> float:
    """The noise's amplitude averaged over the rounds of the training: what tells which setting is weaker."""
    rounds = config.training.rounds
    return statistics.fmean(noise_amplitude(round, rounds, strength, schedule=schedule) for round in range(rounds))


Scores = Mapping[str, float]
"""Of one image, by metric."""


def mean_image_scores(scene: Scene, attack: str) -> dict[str, Scores]:
    """How close the mean of the public images comes to each attacked image: ``psnr`` and ``ssim``."""
    scores: dict[str, Scores] = {}
    for client in scene.attacked_clients(attack):
        truths = client.train.unit_images()
        blank = scene.mean_image.expand_as(truths)
        measured = zip(client.train.sample_ids, psnr(blank, truths).tolist(), ssim(blank, truths).tolist(), strict=True)
        scores.update({image: {"psnr": decibels, "ssim": similarity} for image, decibels, similarity in measured})
    return scores


def leaked(images: Mapping[str, Scores], prior: Mapping[str, Scores]) -> dict[str, Scores]:
    """The images' scores with their ``rdlv`` beside them, where it is defined."""
    similar = torch.tensor([scores["ssim"] for scores in images.values()])
    before = torch.tensor([prior[image]["ssim"] for image in images])
    relative = dict(zip(images, relative_data_leakage(similar, before).tolist(), strict=True))
    return {
        image: {**scores, **({} if math.isnan(relative[image]) else {"rdlv": relative[image]})}
        for image, scores in images.items()
    }


def leakage_of(values: Mapping[int, Sequence[Mapping[str, Scores]]]) -> dict[str, Leakage]:
    """By metric, from ``values[round]``, a list of ``{image: scores}``; without RDLV where too few images have one."""
    found = {}
    for metric in TARGET_RANGES:
        rounds: dict[int, dict[str, list[float]]] = {}
        for round, parts in values.items():
            images = rounds.setdefault(round, {})
            for part in parts:
                for image, scores in part.items():
                    if metric in scores:
                        images.setdefault(image, []).append(scores[metric])
        if metric != "rdlv" or all(len(images) > 1 for images in rounds.values()):
            found[metric] = worst_round(rounds)
    return found

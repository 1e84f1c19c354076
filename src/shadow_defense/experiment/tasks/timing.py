"""The tasks of a step's time: of an attack, of a remover's training, of a generator's; for forecasts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from shadow_defense.attacks.removers.learned import pairs_of_own_making, train_remover
from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.defenses.base import Defense
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import attack_seed, observation_of
from shadow_defense.experiment.tasks.keys import attack_parts, computed_on, deciding, public_parts, start_parts
from shadow_defense.experiment.tasks.measuring import (
    LONG,
    Measuring,
    local_step,
    seconds_of,
)
from shadow_defense.experiment.tasks.pretraining import generator_for_attack
from shadow_defense.federated.states import on_host
from shadow_defense.generators.registry import GENERATORS
from shadow_defense.generators.training import pretrain
from shadow_defense.progress import Progress
from shadow_defense.progress import Task as Steps
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening

MEASURED_STEPS = 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of an attack, or of a training of a remover or a generator."""

    step_seconds: float


@dataclass(frozen=True, eq=False)
class AttackTiming(Measuring[StepTime]):
    """Seconds of one step of an attack on an undefended update of its first client."""

    scene: Scene
    attack: str

    kind = "attack-cost"
    record = StepTime

    def decided_by(self) -> Mapping[str, object]:
        scene, client = self.scene, self.scene.attacked_clients(self.attack)[0]
        timed = attack_parts(scene, Job("", self.attack, 0, client.name), start_parts(scene), False)
        reference = deciding(scene.config.arms[scene.reference])
        return {**timed, "timing": code_hash(__name__), "images": len(client.train), "beside": reference}

    @property
    def about(self) -> str:
        return f"{self.attack}: cost of a step"

    def needs(self) -> Sequence[Task]:
        return generator_for_attack(self.scene, self.attack)

    def measure(self, generator: Path) -> StepTime:
        scene, attack = self.scene, self.attack
        client = scene.attacked_clients(attack)[0]
        job = Job(scene.reference, attack, 0, client.name)
        network = scene.new_model(scene.reference).to(scene.device)
        state = {name: tensor.clone() for name, tensor in on_host(network.state_dict()).items()}
        update = local_step(scene, scene.reference, client, Defense())()
        observation = observation_of(scene, job, network, state, update, generator)
        adaptive = scene.config.attacks[attack].adaptive
        # In place of the rounds before, which would take as long.
        earlier = [] if adaptive is None else [observation] * (adaptive.rounds - 1)
        observation = observation_of(scene, job, network, state, update, generator, earlier)
        watch = _Stopwatch()
        try:
            scene.config.attacks[attack].build().reconstruct(observation, seed=attack_seed(scene, job), task=watch)
        except _EnoughError:
            return StepTime(watch.seconds())
        whole = scene.config.attacks[attack].build().steps()
        return StepTime((time.perf_counter() - watch.times[0]) / max(whole, 1))


@dataclass(frozen=True, eq=False)
class GeneratorTiming(Measuring[StepTime]):
    """Seconds of one step of a shadow generator's pre-training, which are the same for all seeds."""

    scene: Scene

    kind = "generator-cost"
    record = StepTime

    def decided_by(self) -> Mapping[str, object]:
        settings = self.scene.config.generator
        return {
            "code": code_hash(__name__, GENERATORS.module(settings.name)),
            "generator": settings.model_dump(mode="json"),
            "shape": [self.scene.dataset.channels, *self.scene.dataset.image_size],
            **computed_on(self.scene),
        }

    @property
    def about(self) -> str:
        return "shadow generator: cost of a step"

    def measure(self, generator: Path) -> StepTime:
        scene = self.scene
        watch = _Stopwatch()
        with TemporaryDirectory() as folder, suppress(_EnoughError):
            pretrain(
                scene.config.generator,
                scene.dataset.public.images,
                seed=scene.config.seed,
                folder=Path(folder),
                progress=_Watched(watch),
                device=scene.device,
            )
        return StepTime(watch.seconds())


@dataclass(frozen=True, eq=False)
class RemoverTiming(Measuring[StepTime]):
    """Seconds of one step of a learned remover's training on images like the scene's, under white noise."""

    scene: Scene

    kind = "remover-cost"
    record = StepTime

    def decided_by(self) -> Mapping[str, object]:
        return {"code": code_hash(__name__), "public": public_parts(self.scene)}

    @property
    def about(self) -> str:
        return "learned remover: cost of a step"

    def measure(self, generator: Path) -> StepTime:
        public, classes = self.scene.dataset.public, self.scene.dataset.classes
        images = public.unit_images()
        texture = White(measure_whitening(images), 1.0)
        pairs = pairs_of_own_making(texture.protect, images, public.labels)
        first = LinearRemover(texture.whitening, texture.view())
        train = partial(train_remover, first, pairs, classes, seed=0, device=self.scene.device)
        # The first step warms caches up.
        train(steps=1)
        return StepTime(seconds_of(partial(train, steps=MEASURED_STEPS)) / MEASURED_STEPS)


class _EnoughError(Exception):
    """Ends what was started only to see how fast it is."""


class _Watched(Progress):
    def __init__(self, watch: Steps) -> None:
        self.watch = watch

    def start(self, name: str, total: int) -> Steps:
        return self.watch


class _Stopwatch(Steps):
    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.steps = 0
        self._warm_up = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.times.append(time.perf_counter())
        self.steps += steps
        self._warm_up = self._warm_up or steps
        if self.steps > MEASURED_STEPS or self.times[-1] - self.times[0] > LONG:
            raise _EnoughError

    def seconds(self) -> float:
        """Of a whole step, without the first, which warms up."""
        if self.steps <= self._warm_up:
            return (self.times[-1] - self.times[0]) / max(self.steps, 1)
        return (self.times[-1] - self.times[1]) / (self.steps - self._warm_up)

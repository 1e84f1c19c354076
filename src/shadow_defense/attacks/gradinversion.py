"""The medical batch-norm-aware attack (Hatamizadeh et al. 2023; docs/attacks.md), in both its modes."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from shadow_defense.attacks.adaptive.expectation import expected_training
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.local_steps import SimulatedTraining, simulate_training
from shadow_defense.attacks.objectives import matching
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.observed_statistics import (
    NOTHING_IN_THE_BUFFERS,
    buffer_momentum,
    observed_statistics,
    proxy_statistics,
)
from shadow_defense.attacks.priors import average_statistics, mean_norm
from shadow_defense.attacks.released_gradinversion import released_attack
from shadow_defense.attacks.search import Losses, cosine_schedule, search
from shadow_defense.attacks.target import BEYOND, Beyond, matching_target
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.errors import ConfigError
from shadow_defense.models.batchnorm import (
    BatchStatistics,
    BatchStatisticsRecorder,
    step_weights,
)
from shadow_defense.models.image_priors import frobenius_variation, statistics_distance
from shadow_defense.models.simulated_gradient import SimulatedGradient
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class GradInversion(BaseModel):
    """The attack's settings.

    The published weights belong to a matching term without a gradient and to ResNet-18 at 224 px. With a matching
    term that works, 500 iterations on the ConvNet at 32 px rebuilt most with the defaults below.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["differentiable", "released"] = Field(
        "differentiable",
        description="released: what the authors' code does, defects included, to reproduce published numbers",
    )
    iterations: int = Field(2000, ge=1, le=1_000_000, description="Adam iterations; released: 40000")
    learning_rate: float = Field(0.1, gt=0, description="of Adam, on normalised images")
    matching: str = Field("cosine", description="matching term: cosine, or layers (the published form, made relative)")
    matching_weight: float = Field(1.0, ge=0, description="weight of the matching term")
    batch_norm: float = Field(0.01, ge=0, description="weight of the batch-norm statistics; published: 0.1")
    statistics: Literal["recovered", "proxy", "none"] = Field(
        "recovered",
        description="which batch-norm statistics are matched. recovered: the client's own, from its buffers; proxy: "
        "those of public images, for a client that keeps its own; none: no others than the simulated",
    )
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior")
    norm: float = Field(1e-5, ge=0, description="weight of the images' norm")
    energy_noise: float = Field(0.1, ge=0, description="noise after each step, in units of the learning rate")
    start_noise: float = Field(0.1, gt=0, description="noise on the template at the start: a constant start is stuck")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")
    beyond: Beyond = Field("averaged", description=BEYOND)

    @model_validator(mode="after")
    def _released_reads_buffers(self) -> GradInversion:
        if self.mode == "released" and self.statistics != "recovered":
            raise ConfigError("mode released matches the statistics in the buffers: leave statistics at recovered")
        return self

    @property
    def needs(self) -> frozenset[Knowledge]:
        """Local training and the template, and where the batch-norm statistics come from."""
        sources: dict[str, frozenset[Knowledge]] = {
            "recovered": frozenset({"buffers"}),
            "proxy": frozenset({"public images"}),
            "none": frozenset(),
        }
        common: frozenset[Knowledge] = frozenset({"local training", "template"})
        return common | sources[self._matched]

    @property
    def _matched(self) -> str:
        """Which statistics: of no weight, none."""
        return self.statistics if self.batch_norm or self.mode == "released" else "none"

    def steps(self) -> int:
        """Iterations of a whole attack, for progress."""
        return self.iterations

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update and its batch-norm buffers, from the modality's mean image.

        Minimises ``a D(U(x), U*) + b sum_BN (||mu - mu*||_2 + ||var - var*||_2) + c TV(x) + d mean ||x||_2``.
        Departures from the released code: U(x) stays on the graph; the statistics are those of k steps and of the
        biased variance; the model is never trained; the best iterate is returned, inside the box of real images.
        Mode ``released`` makes none of them (:func:`released_attack`); ``matching``, ``start_noise`` and
        ``longest_unroll`` mean nothing there.
        """
        if self.mode == "released":
            return released_attack(
                observation,
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                matching_weight=self.matching_weight,
                batch_norm=self.batch_norm,
                total_variation=self.total_variation,
                norm=self.norm,
                energy_noise=self.energy_noise,
                seed=seed,
                task=task,
            )
        started = time.perf_counter()
        target = matching_target(observation, self.longest_unroll, self.beyond)
        draws = named_generator(seed, "gradinversion")
        start = observation.normalisation.apply(observation.template.unsqueeze(0)).repeat(len(target.labels), 1, 1, 1)
        start = start + self.start_noise * torch.randn(start.shape, generator=draws).to(start)
        bounds = observation.normalisation.bounds(start)
        distance = observation.matching.fitted(matching(self.matching))
        notes = [*target.notes, *observation.matching.notes]
        with BatchStatisticsRecorder(observation.model) as recorder:
            gradient = SimulatedGradient(
                observation.model, target.parameters, target.buffers, observation.loss_fn, recorder
            )
            simulate = partial(
                simulate_training,
                observation.model,
                target.parameters,
                target.buffers,
                labels=target.labels,
                loss_fn=observation.loss_fn,
                local=target.local,
                recorder=recorder,
                sent=target.sent,
                last=target.last,
                gradient=gradient,
            )
            statistics: dict[str, BatchStatistics] = {}
            if self._matched == "recovered":
                statistics = observed_statistics(observation, simulate(images=start).statistics[0])
                if not statistics:
                    notes.append(NOTHING_IN_THE_BUFFERS)
            elif self._matched == "proxy":
                statistics = proxy_statistics(observation)
                notes.append("batch-norm statistics of public images stand in for the client's")
            momentum = buffer_momentum(observation)

            def compared(images: Tensor) -> tuple[SimulatedTraining, Tensor]:
                simulated = expected_training(partial(simulate, images=images), observation.matching.draws)
                return simulated, distance(simulated.update, target.observed)

            def losses(images: Tensor) -> Losses:
                if target.surrogate is not None:
                    target.surrogate.follow(lambda: compared(images.detach())[1].detach())
                simulated, matched = compared(images)
                total = self.matching_weight * matched
                if statistics:
                    ours = average_statistics(simulated.statistics, step_weights(momentum, len(simulated.statistics)))
                    total = total + self.batch_norm * statistics_distance(ours, statistics, images)
                total = total + self.total_variation * frobenius_variation(images) + self.norm * mean_norm(images)
                return Losses(total, matched.detach())

            found = search(
                losses,
                start,
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                schedule=partial(cosine_schedule, warm_up=min(0.05, 100 / self.iterations)),
                bounds=bounds,
                betas=(0.9, 0.9),
                energy_noise=self.energy_noise,
                draws=draws,
                task=task,
            )
        return Reconstruction(
            observation.normalisation.invert(found.images).clamp(0, 1),
            target.labels,
            found.matching_loss,
            self.iterations,
            time.perf_counter() - started,
            found.history,
            (*notes, *gradient.notes),
        )


GRADINVERSION = AttackKind(
    "gradinversion",
    "update and batch-norm matching from a template (Hatamizadeh et al. 2023), differentiable",
    GradInversion,
    searches_pixels=True,
)

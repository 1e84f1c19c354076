"""Inverting Gradients (Geiping et al. 2020; spec/attacks.md, section 3): cosine matching and total variation."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation
from shadow_defense.attacks.search import Found, Losses, search, step_schedule
from shadow_defense.attacks.target import matching_target
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class InvertingGradients(BaseModel):
    """The attack's settings; the defaults are the published ones for small images, with fewer iterations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset()

    iterations: int = Field(1000, ge=1, description="Adam iterations of each restart")
    restarts: int = Field(1, ge=1, description="random starts; the one with the least matching loss is returned")
    learning_rate: float = Field(0.1, gt=0, description="of Adam, on normalised images")
    total_variation: float = Field(
        1e-2, ge=0, description="weight of the smoothness prior; published: 1e-6 to 1e-1, by data set"
    )
    signed: bool = Field(True, description="Adam sees only the sign of the gradient, as published")
    longest_unroll: int = Field(16, ge=1, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress."""
        return self.iterations * self.restarts

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update.

        Minimises ``1 - cos(U(x), U*) + a TV(x)`` over normalised images in the box of real ones, from noise, where
        U(x) is the simulated update. Restarts are chosen by the matching term alone, never by looking at the truth.
        """
        started = time.perf_counter()
        target = matching_target(observation, self.longest_unroll)
        shape = (len(target.labels), *observation.image_shape)
        bounds = observation.normalisation.bounds(torch.zeros(1, observation.image_shape[0], 1, 1))
        found: list[Found] = []
        with BatchStatisticsRecorder(observation.model) as recorder:

            def losses(images: Tensor) -> Losses:
                simulated = simulate_training(
                    observation.model,
                    target.parameters,
                    target.buffers,
                    images,
                    target.labels,
                    observation.loss_fn,
                    target.local,
                    recorder,
                    target.sent,
                )
                distance = cosine_distance(simulated.update, target.observed)
                return Losses(distance + self.total_variation * anisotropic_variation(images), distance.detach())

            for restart in range(self.restarts):
                draws = named_generator(seed, "inverting gradients", restart)
                found.append(
                    search(
                        losses,
                        torch.randn(shape, generator=draws),
                        iterations=self.iterations,
                        learning_rate=self.learning_rate,
                        schedule=step_schedule,
                        bounds=bounds,
                        signed=self.signed,
                        draws=draws,
                        task=task,
                    )
                )
        best = min(found, key=lambda each: each.matching_loss)
        return Reconstruction(
            observation.normalisation.invert(best.images).clamp(0, 1),
            target.labels,
            best.matching_loss,
            self.iterations,
            time.perf_counter() - started,
            best.history,
            target.notes,
        )

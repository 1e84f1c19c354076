"""Inverting Gradients (Geiping et al. 2020; docs/attacks.md): cosine matching and total variation."""

from __future__ import annotations

import math
import time
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.joint_search import JointFound, inside, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation
from shadow_defense.attacks.search import cosine_schedule, step_schedule
from shadow_defense.attacks.target import BEYOND, Beyond
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator

FAST_PULL = 0.7
"""How many times as hard as the matching term the fast variant's smoothness may pull for each factor, at most."""


class InvertingGradients(BaseModel):
    """The attack's settings; the defaults are the published ones for small images, with fewer iterations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset()

    variant: Literal["published", "fast"] = Field(
        "published",
        description="fast: a high learning rate on a cosine schedule, and a smoothness that counts less the better "
        "the update is matched",
    )
    iterations: int | None = Field(
        None, ge=1, le=1_000_000, description="Adam iterations of each restart; null: 1000 as published, fast: 200"
    )
    restarts: int = Field(
        1, ge=1, le=1024, description="random starts; the one with the least matching loss is returned"
    )
    restarts_at_once: int = Field(
        8,
        ge=1,
        le=1024,
        description="restarts simulated in one batch, at so many times the memory; 1: one after the other",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="stop where no restart's loss fell by a thousandth in so many iterations; null: never",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="of Adam, on normalised images; null: 0.1 as published, fast: 0.4"
    )
    total_variation: float | None = Field(
        None,
        ge=0,
        description="weight of the smoothness prior; null: 0.01 (published: 1e-6 to 1e-1, by data set), fast: 3, "
        "relative to the matching term",
    )
    signed: bool = Field(True, description="Adam sees only the sign of the gradient, as published")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")
    beyond: Beyond = Field("averaged", description=BEYOND)

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: restarts in one batch take one together."""
        return self._iterations * math.ceil(self.restarts / self.restarts_at_once)

    @property
    def _iterations(self) -> int:
        return self.iterations or (200 if self.variant == "fast" else 1000)

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update.

        Minimises ``1 - cos(U(x), U*) + a TV(x)`` over normalised images in the box of real ones, from noise, where
        U(x) is the simulated update; the fast variant ``(1 - cos(U(x), U*)) (1 + a TV(x))^n`` of n images, which is
        least at the truth whatever a is: beside a term of constant weight images are smoothed on and on once the update
        is matched. Of what is not one step of SGD n is 1. The gradient of the smoothness is at most 0.7 n times as
        long as that of matching: in proportion to a mismatch that stays it would weigh too much (docs/performance.md).
        Restarts are chosen by the matching term alone, never by looking at the truth.
        """
        started = time.perf_counter()
        fast = self.variant == "fast"
        objective = MatchingObjective(
            observation,
            matching=cosine_distance,
            prior=self._smoothness,
            relative_prior=FAST_PULL if fast else None,
            longest_unroll=self.longest_unroll,
            beyond=self.beyond,
            at_once=self.restarts_at_once,
        )
        labels = objective.target.labels
        shape = (len(labels), *observation.image_shape)
        low, high = observation.box
        draws = [named_generator(seed, "inverting gradients", restart) for restart in range(self.restarts)]
        starts = torch.stack([torch.randn(shape, generator=each) for each in draws]).to(low).clamp(low, high)
        found: list[JointFound] = []
        with objective:
            for part in starts.split(self.restarts_at_once):
                found.append(
                    search_jointly(
                        lambda variables: objective(variables[0]),
                        [part],
                        iterations=self._iterations,
                        learning_rate=self.learning_rate or (0.4 if fast else 0.1),
                        schedule=cosine_schedule if fast else step_schedule,
                        record_every=-(-self._iterations // 100),
                        sign=_hard_sign if self.signed else None,
                        constrain=inside(low, high),
                        patience=self.patience,
                        task=task,
                    )
                )
        best = min(found, key=lambda each: float(each.matching.min()))
        chosen = best.best_restart()
        return Reconstruction(
            observation.normalisation.invert(best.variables[0][chosen]).clamp(0, 1),
            labels,
            float(best.matching[chosen]),
            self._iterations,
            time.perf_counter() - started,
            tuple(best.history[chosen].tolist()),
            objective.notes,
        )

    def _smoothness(self, images: Tensor) -> Tensor:
        weight = (3.0 if self.variant == "fast" else 1e-2) if self.total_variation is None else self.total_variation
        return weight * anisotropic_variation(images)


def _hard_sign(gradient: Tensor, _: float) -> Tensor:
    return gradient.sign()


INVERTING_GRADIENTS = AttackKind(
    "inverting-gradients",
    "cosine matching with total variation (Geiping et al. 2020)",
    InvertingGradients,
    searches_pixels=True,
)

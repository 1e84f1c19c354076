"""Inverting Gradients (Geiping et al. 2020; docs/attacks.md): cosine matching and total variation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.joint_search import JointFound, inside, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.modern_inverting import (
    head_features,
    leaked_features,
    opponent_variation,
    soft_sign,
    tiled_start,
)
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation
from shadow_defense.attacks.search import cosine_schedule, step_schedule
from shadow_defense.attacks.target import Beyond, matching_target
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class InvertingGradients(BaseModel):
    """The attack's settings; the defaults are the published ones for small images, with fewer iterations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset()

    variant: Literal["published", "modern"] = Field(
        "published",
        description="modern: soft sign, cosine schedule, tiled start, colour-aware smoothness, features of the last "
        "layer (weight of the smoothness then: 0.1)",
    )
    iterations: int = Field(1000, ge=1, le=1_000_000, description="Adam iterations of each restart")
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
    learning_rate: float = Field(0.1, gt=0, description="of Adam, on normalised images")
    total_variation: float = Field(
        1e-2, ge=0, description="weight of the smoothness prior; published: 1e-6 to 1e-1, by data set"
    )
    signed: bool = Field(True, description="Adam sees only the sign of the gradient, as published")
    features: float = Field(
        0.1, ge=0, description="modern: weight of the distance from the features that the last layer gives away"
    )
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")
    beyond: Beyond = Field(
        "averaged",
        description="more local steps than that: averaged, one average step; truncated, all simulated, with gradients "
        "through the last of them alone",
    )

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: restarts in one batch take one together."""
        return self.iterations * math.ceil(self.restarts / self.restarts_at_once)

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update.

        Minimises ``1 - cos(U(x), U*) + a TV(x)`` over normalised images in the box of real ones, from noise, where
        U(x) is the simulated update. The modern variant adds ``b mean (h(x) - dW_c / db_c)^2`` of what the last
        layer reads, at the price of one more forward pass, and warms up over 50 iterations. Restarts are chosen by
        the matching term alone, never by looking at the truth.
        """
        started = time.perf_counter()
        modern = self.variant == "modern"
        notes: list[str] = []
        prior = self._modern_prior(observation, notes) if modern else self._smoothness
        objective = MatchingObjective(
            observation,
            matching=cosine_distance,
            prior=prior,
            longest_unroll=self.longest_unroll,
            beyond=self.beyond,
            at_once=self.restarts_at_once,
        )
        labels = objective.target.labels
        shape = (len(labels), *observation.image_shape)
        low, high = observation.normalisation.bounds(torch.zeros(1, observation.image_shape[0], 1, 1))
        draws = [named_generator(seed, "inverting gradients", restart) for restart in range(self.restarts)]
        starts = torch.stack(
            [tiled_start(shape, 4, each) if modern else torch.randn(shape, generator=each) for each in draws]
        ).clamp(low, high)
        sign = soft_sign if modern else _hard_sign
        schedule = partial(cosine_schedule, warm_up=min(0.05, 50 / self.iterations)) if modern else step_schedule
        found: list[JointFound] = []
        with objective:
            for part in starts.split(self.restarts_at_once):
                found.append(
                    search_jointly(
                        lambda variables: objective(variables[0]),
                        [part],
                        iterations=self.iterations,
                        learning_rate=self.learning_rate,
                        schedule=schedule,
                        record_every=-(-self.iterations // 100),
                        sign=sign if self.signed else None,
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
            self.iterations,
            time.perf_counter() - started,
            tuple(best.history[chosen].tolist()),
            (*objective.notes, *notes),
        )

    def _smoothness(self, images: Tensor) -> Tensor:
        return self.total_variation * anisotropic_variation(images)

    def _modern_prior(self, observation: Observation, notes: list[str]) -> Callable[[Tensor], Tensor]:
        target = matching_target(observation, self.longest_unroll, self.beyond)
        updates = dict(zip(target.sent, target.observed, strict=True))
        leaked = leaked_features(observation.model, updates, target.labels)
        if leaked is None:
            notes.append("the last layer's update gives no features away: they are not matched")
        state = {name: tensor.detach() for name, tensor in {**target.parameters, **target.buffers}.items()}

        def prior(images: Tensor) -> Tensor:
            smooth = self.total_variation * opponent_variation(images)
            if leaked is None or not self.features:
                return smooth
            features = head_features(observation.model, state, images)
            return smooth + self.features * (features - leaked).square().mean()

        return prior


def _hard_sign(gradient: Tensor, _: float) -> Tensor:
    return gradient.sign()


INVERTING_GRADIENTS = AttackKind(
    "inverting-gradients", "cosine matching with total variation (Geiping et al. 2020)", InvertingGradients
)

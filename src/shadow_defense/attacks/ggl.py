"""GGL (Li et al. 2022; docs/attacks.md): a latent code alone, by descent or by evolution."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from shadow_defense.attacks.evolution import evolve
from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.joint_search import JointFound, RestartLosses, ramped_schedule, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import squared_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.errors import ConfigError
from shadow_defense.generators.interface import LatentSpace
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class GGL(BaseModel):
    """The attack's settings; the defaults are the published ones, with fewer iterations of Adam."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"generator", "local training"})

    iterations: int = Field(
        1000, ge=1, le=1_000_000, description="of the optimiser; published: 2500 for Adam, 500 to 800 for CMA-ES"
    )
    optimiser: Literal["adam", "cma-es"] = Field("adam", description="gradient descent, or evolution (extra `ggl`)")
    restarts: int = Field(4, ge=1, le=1024, description="Adam: random latent codes, in one batch; CMA-ES goes one way")
    population: int = Field(50, ge=4, le=10_000, description="CMA-ES: codes tried in an iteration")
    latent_space: LatentSpace = Field("z", description="where codes are sought: z, w or w+; published: z")
    learning_rate: float = Field(0.1, gt=0, description="of Adam")
    divergence: float = Field(0.1, ge=0, description="weight of the codes' divergence from N(0, 1); in z only")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    @field_validator("optimiser")
    @classmethod
    def _installed(cls, optimiser: str) -> str:
        if optimiser == "cma-es" and importlib.util.find_spec("cma") is None:
            raise ConfigError("ggl with optimiser=cma-es needs the package cma: pip install 'shadow-defense[ggl]'")
        return optimiser

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all restarts, or a whole population, take one together."""
        return self.iterations

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update, strictly inside the generator's range.

        Minimises ``sum_l ||U_l(G(z)) - U*_l||_2^2 / sum_l ||U*_l||_2^2 + a KL(z)``. The published matching term is
        not relative, so that its weight against the divergence depends on the model. Codes are not squashed by tanh
        under CMA-ES: the project's generators are trained on all of N(0, I), so the divergence does that work.
        """
        started = time.perf_counter()
        # The local training too: the squared distance needs the size of a step, not only its direction.
        observation.threat_model.require(self.needs, "ggl")
        prior = GeneratorPrior(observation, self.latent_space)
        objective = MatchingObjective(
            observation,
            matching=squared_distance,
            prior=lambda images: images.new_zeros(()),
            longest_unroll=self.longest_unroll,
        )
        weight = self.divergence if self.latent_space == "z" else 0.0

        def losses(codes: Float[Tensor, "r n *code"]) -> RestartLosses:
            matched = objective(prior.images(codes))
            if not weight:
                return matched
            return RestartLosses(matched.total + weight * latent_divergence(codes).mean(1), matched.matching)

        search = self._evolve if self.optimiser == "cma-es" else self._descend
        with objective:
            found = search(prior, losses, len(objective.target.labels), seed, task)
        chosen = found.best_restart()
        with torch.no_grad():
            images = prior.images(found.variables[0][chosen : chosen + 1])[0]
        return Reconstruction(
            observation.normalisation.invert(images).clamp(0, 1),
            objective.target.labels,
            float(found.matching[chosen]),
            self.iterations,
            time.perf_counter() - started,
            tuple(found.history[chosen].tolist()),
            objective.notes,
        )

    def _descend(
        self,
        prior: GeneratorPrior,
        losses: Callable[[Tensor], RestartLosses],
        count: int,
        seed: int,
        task: Task | None,
    ) -> JointFound:
        return search_jointly(
            lambda variables: losses(variables[0]),
            [prior.codes(seed, "ggl", self.restarts, count)],
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            schedule=partial(ramped_schedule, up=0.05, down=0.25),
            record_every=-(-self.iterations // 100),
            task=task,
        )

    def _evolve(
        self,
        prior: GeneratorPrior,
        losses: Callable[[Tensor], RestartLosses],
        count: int,
        seed: int,
        task: Task | None,
    ) -> JointFound:
        draws = named_generator(seed, "ggl", "evolution")
        mean, deviation = prior.spread(draws)
        return evolve(
            losses,
            mean.expand(count, *mean.shape),
            deviation,
            iterations=self.iterations,
            population=self.population,
            draws=draws,
            task=task,
        )


def latent_divergence(codes: Float[Tensor, "*batch z"]) -> Float[Tensor, "*batch"]:
    """``-(1 + log s^2 - m^2 - s^2) / 2`` with m and s^2 the mean and variance of one code's entries.

    The divergence of N(m, s^2) from N(0, 1): a code that looks drawn from N(0, I) has almost none.

    >>> [round(abs(each), 3) for each in latent_divergence(torch.tensor([[1.0, -1.0], [3.0, 1.0]])).tolist()]
    [0.0, 2.0]
    """
    variance, mean = torch.var_mean(codes, dim=-1, unbiased=False)
    return -0.5 * (1 + (variance + 1e-10).log() - mean.square() - variance)


GGL_KIND = AttackKind("ggl", "a generator's latent code alone, by Adam or CMA-ES (Li et al. 2022)", GGL)

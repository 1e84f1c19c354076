"""GIAS (Jeon et al. 2021; spec/attacks.md, section 6): a generator's latent code, then its weights, image by image."""

from __future__ import annotations

import time
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.latent_then_weights import latent_then_weights
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.generators.interface import LatentSpace
from shadow_defense.progress import Task


class GIAS(BaseModel):
    """The attack's settings; the defaults are the published ones, with fewer iterations on the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"generator"})

    iterations: int = Field(
        1000, ge=1, le=1_000_000, description="Adam iterations on the latent codes; published: 500 to 1000"
    )
    weight_iterations: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Adam iterations on the generator's weights; null: as many; published: 5000 to 8000",
    )
    restarts: int = Field(
        4, ge=1, le=1024, description="random latent codes, in one batch; the best matching one goes on"
    )
    latent_space: LatentSpace = Field("z", description="where codes are sought: z, w or w+; published: w+ on StyleGAN2")
    learning_rate: float = Field(0.1, gt=0, description="of Adam on codes; published: 0.1 on DCGAN, 0.03 on StyleGAN2")
    weight_learning_rate: float = Field(1e-3, gt=0, description="of Adam on weights")
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior; published: 1e-6 to 1e-4")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all restarts take one together."""
        return sum(self._iterations())

    def _iterations(self) -> tuple[int, int]:
        return self.iterations, self.iterations if self.weight_iterations is None else self.weight_iterations

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update, inside the generator's range and then a little outside it.

        Minimises ``1 - cos(U(G(z)), U*) + a TV(G(z))`` over latent codes, then over one copy of the synthesis
        parameters an image, codes fixed. The restart that goes on is chosen by the matching term alone.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "gias")
        prior = GeneratorPrior(observation, self.latent_space)
        objective = MatchingObjective(
            observation,
            matching=cosine_distance,
            prior=lambda images: self.total_variation * anisotropic_variation(images),
            longest_unroll=self.longest_unroll,
        )
        with objective:
            images, matching_loss, history = latent_then_weights(
                prior,
                objective,
                prior.codes(seed, "gias", self.restarts, len(objective.target.labels)),
                iterations=self._iterations(),
                learning_rates=(self.learning_rate, self.weight_learning_rate),
                schedule_factor=0.1,
                generator_per_image=True,
                task=task,
            )
        return Reconstruction(
            observation.normalisation.invert(images).clamp(0, 1),
            objective.target.labels,
            matching_loss,
            self.steps(),
            time.perf_counter() - started,
            history,
            tuple(objective.notes),
        )

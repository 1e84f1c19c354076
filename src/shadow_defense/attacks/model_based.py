"""The paper's own model-based attack, on the shadow generator (spec/attacks.md, section 6, [SD])."""

from __future__ import annotations

import time
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.latent_then_weights import latent_then_weights
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import matching
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import mean_norm
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.generators.interface import LatentSpace
from shadow_defense.progress import Task
from shadow_defense.shadow.pseudo_attack import frobenius_variation


class ModelBased(BaseModel):
    """The attack's settings; the defaults are the published ones where they carry over, with fewer iterations.

    The published matching term has no gradient; with one that works, the cosine is what a weight of 1 suits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"generator", "local training", "buffers"})

    iterations: int = Field(
        1000, ge=1, le=1_000_000, description="Adam iterations on the latent codes; published: 5000"
    )
    weight_iterations: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Adam iterations on the generator's weights; null: as many; published: 5000",
    )
    restarts: int = Field(
        1, ge=1, le=1024, description="random latent codes, in one batch; the best matching one goes on"
    )
    latent_space: LatentSpace = Field("z", description="where codes are sought: z, w or w+; published: z")
    learning_rate: float = Field(1e-2, gt=0, description="of Adam on codes")
    weight_learning_rate: float = Field(1e-4, gt=0, description="of Adam on weights, which all images share")
    matching: str = Field("cosine", description="matching term: cosine, or layers (the published form, made relative)")
    batch_norm: float = Field(5e-2, ge=0, description="weight of the batch-norm statistics")
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior")
    norm: float = Field(1e-5, ge=0, description="weight of the images' norm")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all restarts take one together."""
        return sum(self._iterations())

    def _iterations(self) -> tuple[int, int]:
        return self.iterations, self.iterations if self.weight_iterations is None else self.weight_iterations

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update and its batch-norm buffers, by the shadow generator.

        Minimises ``D(U(G(z)), U*) + b sum_BN (||mu - mu*||_2 + ||var - var*||_2) + c TV(G(z)) + d mean ||G(z)||_2``
        over the latent codes, then over the synthesis parameters that all images share; the learning rate is
        multiplied by 0.8 at 3/8, 5/8 and 7/8. Departures from the authors' code: the matching term has a gradient;
        the generator stays in eval mode, so that an image depends on its own code alone; labels are those granted or
        recovered; the best iterate is returned, not the last.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "model-based")
        prior = GeneratorPrior(observation, self.latent_space)

        def image_prior(images: Tensor) -> Tensor:
            return self.total_variation * frobenius_variation(images) + self.norm * mean_norm(images)

        objective = MatchingObjective(
            observation,
            matching=matching(self.matching),
            prior=image_prior,
            longest_unroll=self.longest_unroll,
            batch_norm=self.batch_norm,
        )
        with objective:
            images, matching_loss, history = latent_then_weights(
                prior,
                objective,
                prior.codes(seed, "model based", self.restarts, len(objective.target.labels)),
                iterations=self._iterations(),
                learning_rates=(self.learning_rate, self.weight_learning_rate),
                schedule_factor=0.8,
                generator_per_image=False,
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

"""GIAS and the paper's own attack (docs/attacks.md): a generator's latent codes, then its weights."""

from __future__ import annotations

import time
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.joint_search import JointFound, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance, matching
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation, mean_norm
from shadow_defense.attacks.search import step_schedule
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.generators.interface import LatentSpace
from shadow_defense.models.image_priors import frobenius_variation
from shadow_defense.progress import Task


def latent_then_weights(
    prior: GeneratorPrior,
    objective: MatchingObjective,
    codes: Float[Tensor, "r n *code"],
    *,
    iterations: tuple[int, int],
    learning_rates: tuple[float, float],
    schedule_factor: float,
    generator_per_image: bool,
    task: Task | None = None,
) -> tuple[Float[Tensor, "n c h w"], float, tuple[float, ...]]:
    """Search the codes of all restarts, then from the best of them the synthesis parameters, with the codes fixed.

    The mapping network stays as it is. Both searches are Adam with the learning rate multiplied by
    ``schedule_factor`` at 3/8, 5/8 and 7/8 of the iterations.

    Args:
        iterations, learning_rates: of the two searches; 0 iterations leave the second out.
        generator_per_image: a copy of the parameters for each image, or one for all.

    Returns:
        Normalised images, their matching loss, and the total loss on the way.
    """
    schedule = partial(step_schedule, factor=schedule_factor)
    every = -(-sum(iterations) // 100)

    def of_codes(variables: tuple[Tensor, ...]) -> Tensor:
        return prior.images(variables[0])

    first = search_jointly(
        lambda variables: objective(of_codes(variables)),
        [codes],
        iterations=iterations[0],
        learning_rate=learning_rates[0],
        schedule=schedule,
        record_every=every,
        task=task,
    )
    chosen = first.best_restart()
    found = first.variables[0][chosen]
    history = first.history[chosen].tolist()
    if not iterations[1]:
        with torch.no_grad():
            return prior.images(found.unsqueeze(0))[0], float(first.matching[chosen]), tuple(history)
    weights = prior.weights()
    copies = len(found) if generator_per_image else 1
    # One row, for one restart, of all copies.
    started = [weight.expand(1, copies, *weight.shape) for weight in weights.values()]

    def of_weights(variables: tuple[Tensor, ...]) -> Tensor:
        return prior.images_of_weights(list(weights), [variable[0] for variable in variables], found)

    second: JointFound = search_jointly(
        lambda variables: objective(of_weights(variables)),
        started,
        iterations=iterations[1],
        learning_rate=learning_rates[1],
        schedule=schedule,
        record_every=every,
        task=task,
    )
    with torch.no_grad():
        images = of_weights(second.variables)[0]
    return images, float(second.matching[0]), tuple(history + second.history[0].tolist())


class _CodesThenWeights(BaseModel):
    """Settings and search that both attacks share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(
        1000, ge=1, le=1_000_000, description="Adam iterations on the latent codes; published: 500 to 5000"
    )
    weight_iterations: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Adam iterations on the generator's weights; null: as many; published: 5000 to 8000",
    )
    restarts: int = Field(
        1, ge=1, le=1024, description="random latent codes, in one batch; the best matching one goes on"
    )
    learning_rate: float = Field(0.1, gt=0, description="of Adam on codes")
    weight_learning_rate: float = Field(1e-3, gt=0, description="of Adam on weights")
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all restarts take one together."""
        return sum(self._iterations())

    def _iterations(self) -> tuple[int, int]:
        return self.iterations, self.iterations if self.weight_iterations is None else self.weight_iterations

    def search(
        self,
        observation: Observation,
        prior: GeneratorPrior,
        objective: MatchingObjective,
        codes: Float[Tensor, "r n *code"],
        *,
        schedule_factor: float,
        generator_per_image: bool,
        task: Task | None,
    ) -> Reconstruction:
        """The reconstruction that :func:`latent_then_weights` finds."""
        started = time.perf_counter()
        with objective:
            images, matching_loss, history = latent_then_weights(
                prior,
                objective,
                codes,
                iterations=self._iterations(),
                learning_rates=(self.learning_rate, self.weight_learning_rate),
                schedule_factor=schedule_factor,
                generator_per_image=generator_per_image,
                task=task,
            )
        return Reconstruction(
            observation.normalisation.invert(images).clamp(0, 1),
            objective.target.labels,
            matching_loss,
            self.steps(),
            time.perf_counter() - started,
            history,
            objective.notes,
        )


class GIAS(_CodesThenWeights):
    """GIAS (Jeon et al. 2021), image by image; the published settings, with fewer iterations on the weights."""

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"generator"})

    restarts: int = Field(
        4, ge=1, le=1024, description="random latent codes, in one batch; the best matching one goes on"
    )
    latent_space: LatentSpace = Field("z", description="where codes are sought: z, w or w+; published: w+ on StyleGAN2")
    learning_rate: float = Field(0.1, gt=0, description="of Adam on codes; published: 0.1 on DCGAN, 0.03 on StyleGAN2")
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior; published: 1e-6 to 1e-4")

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update, inside the generator's range and then a little outside it.

        Minimises ``1 - cos(U(G(z)), U*) + a TV(G(z))`` over latent codes, then over one copy of the synthesis
        parameters an image, codes fixed. The restart that goes on is chosen by the matching term alone.
        """
        observation.threat_model.require(self.needs, "gias")
        prior = GeneratorPrior(observation, self.latent_space)
        objective = MatchingObjective(
            observation,
            matching=cosine_distance,
            prior=lambda images: self.total_variation * anisotropic_variation(images),
            longest_unroll=self.longest_unroll,
        )
        return self.search(
            observation,
            prior,
            objective,
            prior.codes(seed, "gias", self.restarts, len(objective.target.labels)),
            schedule_factor=0.1,
            generator_per_image=True,
            task=task,
        )


class ModelBased(_CodesThenWeights):
    """The paper's own attack (Jiang et al. 2025); the published settings where they carry over, with fewer iterations.

    The published matching term has no gradient; with one that works, the cosine is what a weight of 1 suits.
    """

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"generator", "local training", "buffers"})

    latent_space: LatentSpace = Field("z", description="where codes are sought: z, w or w+; published: z")
    learning_rate: float = Field(1e-2, gt=0, description="of Adam on codes")
    weight_learning_rate: float = Field(1e-4, gt=0, description="of Adam on weights, which all images share")
    matching: str = Field("cosine", description="matching term: cosine, or layers (the published form, made relative)")
    batch_norm: float = Field(5e-2, ge=0, description="weight of the batch-norm statistics")
    norm: float = Field(1e-5, ge=0, description="weight of the images' norm")

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update and its batch-norm buffers, by the shadow generator.

        Minimises ``D(U(G(z)), U*) + b sum_BN (||mu - mu*||_2 + ||var - var*||_2) + c TV(G(z)) + d mean ||G(z)||_2``
        over the latent codes, then over the synthesis parameters that all images share; the learning rate is
        multiplied by 0.8 at 3/8, 5/8 and 7/8. Departures from the authors' code: the matching term has a gradient;
        the generator stays in eval mode, so that an image depends on its own code alone; labels are those granted or
        recovered; the best iterate is returned, not the last.
        """
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
        return self.search(
            observation,
            prior,
            objective,
            prior.codes(seed, "model based", self.restarts, len(objective.target.labels)),
            schedule_factor=0.8,
            generator_per_image=False,
            task=task,
        )


GIAS_KIND = AttackKind("gias", "a generator's latent code, then its weights, image by image (Jeon et al. 2021)", GIAS)
MODEL_BASED = AttackKind(
    "model-based",
    "the paper's: latent code, then the shadow generator's weights, with batch-norm statistics",
    ModelBased,
)

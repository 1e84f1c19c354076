"""GIFD (Fang et al. 2023; docs/attacks.md): a search through the generator's layers, code first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.joint_search import JointFound, RestartLosses, ramped_schedule, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.l1_ball import project_to_l1_ball, retract_to_sphere
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.priors import anisotropic_variation
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.generators.interface import LatentSpace
from shadow_defense.progress import Task

Constraint = Callable[[tuple[Tensor, ...]], None]


class GIFD(BaseModel):
    """The attack's settings; the defaults are the published ones, but for fewer stages and relative radii."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"generator"})

    iterations: int = Field(1000, ge=1, le=1_000_000, description="Adam iterations of each stage")
    stages: int = Field(
        4, ge=1, le=100, description="feature layers searched after the latent code, evenly spread; at most all of them"
    )
    restarts: int = Field(4, ge=1, le=1024, description="random latent codes, in one batch, carried through all stages")
    latent_space: LatentSpace = Field("z", description="where codes are sought: z, w or w+; published: w+ on StyleGAN2")
    learning_rate: float = Field(0.1, gt=0, description="of Adam, in every stage")
    radius: float = Field(
        0.1,
        gt=0,
        description="l1 ball of the first feature layer, as a share of its start's l1 norm; k-fold at the kth layer",
    )
    total_variation: float = Field(1e-4, ge=0, description="weight of the smoothness prior")
    norm: float = Field(1e-6, ge=0, description="weight of the images' norm")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all restarts take one together."""
        return self.iterations * (self.stages + 1)

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update: latent codes first, then what deeper and deeper layers read.

        Every stage minimises ``1 - cos(U(x), U*) + a TV(x) + b mean ||x||_2 / (H W)^2``, starts where the stage
        before it ended, and stays in an l1 ball around that start; codes in z keep their norm in the first stage. At
        a feature layer the codes move too: in StyleGAN they style the layers that follow. Returned is the image of
        the stage and restart that match best. Published radii are absolute numbers for two networks, growing with
        the stage; here they are relative, so that they carry over. Other than in the published code the chosen
        restart's own image is returned.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "gifd")
        prior = GeneratorPrior(observation, self.latent_space)
        layers = spread_layers(prior.generator.feature_layers, self.stages)
        # Names the trouble for a generator without features.
        prior.generator.check_layer(0)
        pixels = math.prod(observation.image_shape[1:])

        def image_prior(images: Tensor) -> Tensor:
            norm = torch.linalg.vector_norm(images.flatten(1), dim=1).mean() / pixels**2
            return self.total_variation * anisotropic_variation(images) + self.norm * norm

        objective = MatchingObjective(
            observation, matching=cosine_distance, prior=image_prior, longest_unroll=self.longest_unroll
        )
        run = partial(
            search_jointly,
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            schedule=partial(ramped_schedule, up=0.05, down=0.75),
            record_every=-(-self.iterations * (len(layers) + 1) // 100),
            task=task,
        )
        codes = prior.codes(seed, "gifd", self.restarts, len(objective.target.labels))
        stages: list[_Stage] = []
        with objective:
            first = run(
                lambda variables: objective(prior.images(variables[0])),
                [codes],
                constrain=_keep_norms(codes) if self.latent_space == "z" else None,
            )
            stages.append(_Stage.of(first, lambda variables: prior.images(variables[0])))
            (codes,) = first.variables
            with torch.no_grad():
                features = prior.features(codes, layers[0])
            for number, layer in enumerate(layers, start=1):

                def images_of(variables: tuple[Tensor, ...], layer: int = layer) -> Tensor:
                    return prior.images_of_features(variables[0], variables[1], layer)

                found = run(
                    partial(_evaluate, objective, images_of),
                    [features, codes],
                    constrain=_stay_near((features, codes), self.radius * number),
                )
                stages.append(_Stage.of(found, images_of))
                features, codes = found.variables
                if number < len(layers):
                    with torch.no_grad():
                        features = prior.advance(features, codes, layer, layers[number])
        if task and self.stages > len(layers):
            task.advance(self.iterations * (self.stages - len(layers)))
        number = min(range(len(stages)), key=lambda each: stages[each].matching_loss)
        best = stages[number]
        chosen = f"searched the latent code and feature layers {', '.join(map(str, layers))}; the best match came from "
        chosen += f"layer {layers[number - 1]}" if number else "the latent code"
        return Reconstruction(
            observation.normalisation.invert(best.images).clamp(0, 1),
            objective.target.labels,
            best.matching_loss,
            self.iterations * len(stages),
            time.perf_counter() - started,
            tuple(value for stage in stages for value in stage.history),
            (*objective.notes, chosen),
        )


def _evaluate(
    objective: MatchingObjective, images_of: Callable[[tuple[Tensor, ...]], Tensor], variables: tuple[Tensor, ...]
) -> RestartLosses:
    return objective(images_of(variables))


class _Stage(NamedTuple):
    """What a stage found with its best restart: images (n, c, h, w), normalised."""

    images: Tensor
    matching_loss: float
    history: list[float]

    @classmethod
    def of(cls, found: JointFound, images_of: Callable[[tuple[Tensor, ...]], Tensor]) -> _Stage:
        chosen = found.best_restart()
        with torch.no_grad():
            images = images_of(tuple(variable[chosen : chosen + 1] for variable in found.variables))[0]
        return cls(images, float(found.matching[chosen]), found.history[chosen].tolist())


def spread_layers(available: int, stages: int) -> tuple[int, ...]:
    """``stages`` of the layers 0 to ``available - 1``, evenly spread from the first to the last but one.

    The last layer makes the image of what it reads: there the generator knows nothing any more, and it is taken only
    where all layers are.

    >>> spread_layers(15, 4), spread_layers(3, 2), spread_layers(2, 4)
    ((0, 4, 8, 13), (0, 1), (0, 1))
    """
    if stages >= available:
        return tuple(range(available))
    if stages == 1:
        return (0,)
    return tuple(stage * (available - 2) // (stages - 1) for stage in range(stages))


def _keep_norms(codes: Tensor) -> Constraint:
    norms = torch.linalg.vector_norm(codes, dim=-1).flatten()

    def constrain(variables: tuple[Tensor, ...]) -> None:
        (moved,) = variables
        moved.copy_(retract_to_sphere(moved.flatten(0, 1), norms).view_as(moved))

    return constrain


def _stay_near(starts: tuple[Tensor, ...], share: float) -> Constraint:
    """Within ``share`` of each image's own l1 norm of every starting variable."""
    radii = [share * start.flatten(2).abs().sum(2).flatten().clamp_min(1e-12) for start in starts]

    def constrain(variables: tuple[Tensor, ...]) -> None:
        for moved, start, radius in zip(variables, starts, radii, strict=True):
            difference = (moved - start).flatten(0, 1)
            moved.copy_(start + project_to_l1_ball(difference, radius).view_as(moved))

    return constrain


GIFD_KIND = AttackKind("gifd", "latent code, then the generator's features layer by layer (Fang et al. 2023)", GIFD)

"""What DLG and iDLG share: squared gradient differences, minimised by L-BFGS from noise."""

from __future__ import annotations

import time
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.adaptive.expectation import expected_training
from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import squared_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.quasi_newton import quasi_newton_search
from shadow_defense.attacks.target import Simulation
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class _Start(NamedTuple):
    """What came of one start: normalised images in the box, labels, and the matching loss of just these images."""

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]
    matching_loss: float
    history: tuple[float, ...]


class DeepLeakage(BaseModel):
    """Settings of both attacks.

    The client's network must be twice differentiable (sigmoid, GELU): through ReLU L-BFGS has little to follow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The learning rate: squared differences, unlike cosines, depend on the update's length.
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"local training"})

    iterations: int = Field(
        300, ge=1, le=1_000_000, description="L-BFGS iterations of each start, of up to 20 steps each"
    )
    restarts: int = Field(4, ge=1, le=1024, description="random starts at most; published: 1")
    tolerance: float = Field(
        1e-8, ge=0, description="matching loss at which the search ends, relative to the squared norm of the update"
    )
    line_search: bool = Field(True, description="strong Wolfe line search; published: none, where some starts diverge")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress."""
        return self.iterations * self.restarts

    def search(
        self,
        observation: Observation,
        simulation: Simulation,
        labels: Int64[Tensor, "n"] | None,
        *,
        name: str,
        seed: int,
        task: Task | None,
    ) -> Reconstruction:
        """Minimise ``sum ||U(x, y) - U*||^2`` over images x and, where ``labels`` is None, logits of y.

        Starts are tried one after the other, since each needs an L-BFGS of its own, until one reaches the tolerance.
        No box while searching, as published; the images are clamped to it once, and judged as they are then.
        """
        started = time.perf_counter()
        shape = (simulation.count, *observation.image_shape)
        low, high = observation.normalisation.bounds(torch.zeros(1, observation.image_shape[0], 1, 1))
        found: list[_Start] = []
        distance = observation.matching.fitted(squared_distance)
        with BatchStatisticsRecorder(observation.model) as recorder:

            def loss(images: Tensor, *logits: Tensor) -> Tensor:
                simulate = partial(
                    simulate_training,
                    observation.model,
                    simulation.parameters,
                    simulation.buffers,
                    images,
                    logits[0].softmax(dim=1) if labels is None else labels,
                    observation.loss_fn,
                    simulation.local,
                    recorder,
                    simulation.sent,
                )
                simulated = expected_training(simulate, observation.matching.draws)
                return distance(simulated.update, simulation.observed)

            for restart in range(self.restarts):
                draws = named_generator(seed, name, restart)
                initial = [torch.randn(shape, generator=draws)]
                if labels is None:
                    initial.append(torch.randn(simulation.count, observation.classes, generator=draws))
                minimum = quasi_newton_search(
                    loss,
                    initial,
                    iterations=self.iterations,
                    tolerance=self.tolerance,
                    line_search=self.line_search,
                    task=task,
                )
                images = minimum.variables[0].clamp(low, high)
                matched = loss(images, *minimum.variables[1:]).item()
                chosen = minimum.variables[1].argmax(dim=1) if labels is None else labels
                found.append(_Start(images, chosen, matched, minimum.history))
                if minimum.loss <= self.tolerance:
                    if task:
                        task.advance(self.iterations * (self.restarts - restart - 1))
                    break
        best = min(found, key=lambda start: start.matching_loss)
        return Reconstruction(
            observation.normalisation.invert(best.images).clamp(0, 1),
            best.labels,
            best.matching_loss,
            len(best.history),
            time.perf_counter() - started,
            best.history,
            (*simulation.notes, *observation.matching.notes),
        )

"""DLG and iDLG (docs/attacks.md): squared gradient differences, minimised by L-BFGS from noise."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.adaptive.expectation import expected_training
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import squared_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.quasi_newton import quasi_newton_search
from shadow_defense.attacks.target import Simulation, client_simulation, inferred_labels, labels_note
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class _Start(NamedTuple):
    """What came of one start: normalised images in the box, labels, and the matching loss of just these images."""

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
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
        labels: Int64[Tensor, " n"] | None,
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
        low, high = observation.box
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
                initial = [torch.randn(shape, generator=draws).to(observation.device)]
                if labels is None:
                    initial.append(
                        torch.randn(simulation.count, observation.classes, generator=draws).to(observation.device)
                    )
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


class DLG(DeepLeakage):
    """Deep Leakage from Gradients (Zhu et al. 2019): images and labels sought together."""

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild images and labels from the update, from noise.

        Minimises ``sum ||U(x, softmax(l)) - U*||^2`` over images x and label logits l. The label returned for an
        image is the largest of its own optimised logits. True labels are not read, even where they are granted.

        Raises:
            ThreatModelError: where the local training is not granted.
        """
        observation.threat_model.require(self.needs, "dlg")
        simulation = client_simulation(observation, self.longest_unroll)
        return self.search(observation, simulation, None, name="dlg", seed=seed, task=task)


class IDLG(DeepLeakage):
    """Improved Deep Leakage from Gradients (Zhao et al. 2020): labels first, then images."""

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild images from the update, from noise, with the labels that its last layer gives away.

        Minimises ``sum ||U(x, y) - U*||^2`` over images x alone. The published rule (row sums of the last weight) is
        taken where that layer has no bias; elsewhere the bias, which needs no sign of the features. True labels are
        not read, even where they are granted.

        Raises:
            ThreatModelError: where the local training is not granted.
            ModelError: for a model without a linear layer.
        """
        observation.threat_model.require(self.needs, "idlg")
        simulation = client_simulation(observation, self.longest_unroll)
        labels = inferred_labels(observation, simulation)
        simulation = replace(simulation, notes=(*simulation.notes, labels_note(observation)))
        return self.search(observation, simulation, labels, name="idlg", seed=seed, task=task)


DLG_KIND = AttackKind(
    "dlg", "squared differences by L-BFGS, images and labels together (Zhu et al. 2019)", DLG, searches_pixels=True
)
IDLG_KIND = AttackKind(
    "idlg",
    "squared differences by L-BFGS, labels read off the last layer (Zhao et al. 2020)",
    IDLG,
    searches_pixels=True,
)

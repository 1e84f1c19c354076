"""ROG (Yue et al. 2023; docs/attacks.md): a search among small images, enlarged before they are matched."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.attacks.joint_search import RestartLosses, inside, search_jointly
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import matching
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.search import cosine_schedule
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.progress import Task
from shadow_defense.seeds import named_generator


class ROG(BaseModel):
    """The attack's settings; the defaults are the published ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The learning rate and the steps: distances, unlike cosines, depend on the update's length.
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"local training"})

    iterations: int = Field(100, ge=1, le=1_000_000, description="Adam iterations of each restart")
    restarts: int = Field(1, ge=1, le=1024, description="random starts, all in one batch; the best match is returned")
    restarts_at_once: int = Field(
        8,
        ge=1,
        le=1024,
        description="restarts simulated in one batch, at so many times the memory; 1: one after the other",
    )
    scale: int = Field(4, ge=1, le=64, description="side of the image over the side of what is sought, rounded up")
    learning_rate: float = Field(0.05, gt=0, description="of Adam, on images in [0, 1]")
    matching: str = Field("layers", description="matching term: layers (made relative), cosine or squares")
    longest_unroll: int = Field(16, ge=1, le=10_000, description="local steps up to which the training is unrolled")

    def steps(self) -> int:
        """Iterations of a whole attack, for progress: all restarts take one together."""
        return self.iterations

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Rebuild the client's images from its update, at a quarter of their side.

        Minimises ``sum over tensors of ||U(up(u)) - U*||_2`` over small images u in [0, 1], from uniform noise, where
        ``up`` enlarges bicubically: sixteen times fewer numbers, and smooth ones, so that no smoothness prior is
        needed. The learning rate falls to a tenth along a cosine. Departures: the distances are relative; the best
        iterate is returned; the published enhancement by pretrained networks is left out, so that what comes back is
        what the update holds and not what the networks know.

        Raises:
            ThreatModelError: where the local training is not granted.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "rog")
        objective = MatchingObjective(
            observation,
            matching=matching(self.matching),
            prior=lambda images: images.new_zeros(()),
            longest_unroll=self.longest_unroll,
            at_once=self.restarts_at_once,
        )
        channels, height, width = observation.image_shape
        small = (len(objective.target.labels), channels, -(-height // self.scale), -(-width // self.scale))
        draws = [named_generator(seed, "rog", restart) for restart in range(self.restarts)]
        starts = torch.stack([torch.rand(small, generator=each) for each in draws]).to(observation.device)

        def losses(variables: tuple[Tensor, ...]) -> RestartLosses:
            (candidates,) = variables
            large = enlarged(candidates.flatten(0, 1), height, width)
            return objective(observation.normalisation.apply(large).unflatten(0, candidates.shape[:2]))

        with objective:
            found = search_jointly(
                losses,
                [starts],
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                schedule=lambda share: 0.1 + 0.9 * cosine_schedule(share),
                record_every=-(-self.iterations // 100),
                constrain=inside(starts.new_zeros(()), starts.new_ones(())),
                task=task,
            )
        chosen = found.best_restart()
        return Reconstruction(
            enlarged(found.variables[0][chosen], height, width).clamp(0, 1),
            objective.target.labels,
            float(found.matching[chosen]),
            self.iterations,
            time.perf_counter() - started,
            tuple(found.history[chosen].tolist()),
            (*objective.notes, f"sought at {small[2]} x {small[3]} pixels and enlarged"),
        )


def enlarged(images: Float[Tensor, "n c h w"], height: int, width: int) -> Float[Tensor, "n c height width"]:
    """Bicubic interpolation to ``height`` x ``width``, which may leave [0, 1] beside edges."""
    return F.interpolate(images, size=(height, width), mode="bicubic", align_corners=False)


ROG_KIND = AttackKind("rog", "small images, enlarged before they are matched (Yue et al. 2023)", ROG)

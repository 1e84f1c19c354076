"""Robbing the Fed (Fowl et al. 2022; docs/attacks.md): the server reads images off the layer it planted."""

from __future__ import annotations

import math
import time
from typing import ClassVar

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shadow_defense.attacks.analytic import explained, step_notes
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.target import matching_target
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.errors import ModelError, UpdateError
from shadow_defense.models.imprint import ImprintedModel
from shadow_defense.progress import Task

EMPTY = 1e-5
"""Share of the greatest bias update below which a unit holds nothing but rounding."""


def imprinted_images(weight: Float[Tensor, "bins d"], bias: Float[Tensor, " bins"], count: int) -> Float[Tensor, "m d"]:
    """Up to ``count`` images from the update of the imprint layer, those with the strongest signal first.

    ``x = dW_i / db_i``: exact where unit i was trained on one image, their weighted mean where it was on several. Any
    common factor cancels. Units that nothing was trained on are left out.

    >>> import torch
    >>> weight, bias = torch.tensor([[3.0, 3.0], [2.0, 4.0], [0.0, 0.0]]), torch.tensor([3.0, 1.0, 0.0])
    >>> imprinted_images(weight, bias, 5).tolist()
    [[1.0, 1.0], [2.0, 4.0]]
    """
    strength = bias.double().abs()
    strongest = strength.argsort(descending=True, stable=True)[:count]
    chosen = strongest[strength[strongest] > EMPTY * strength.max()]
    return (weight[chosen].double() / bias[chosen].double().unsqueeze(1)).to(weight)


class RobbingTheFed(BaseModel):
    """The attack, which has nothing to set: its choices are in the model that was sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset({"own model"})

    def steps(self) -> int:
        """Iterations of a whole attack, for progress."""
        return 1

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Read the images that the client trained on off the update of an :class:`ImprintedModel`.

        Exact for images that are alone in their bin, for any loss, body, batch size and number of local steps of SGD.
        Of images that share a bin the first that was trained on comes back, as one mean with those of its batch, so
        that fewer may be returned than the client has. What comes back is what was trained on: input-space noise is
        part of it.

        Raises:
            ThreatModelError: where the server may not send a model of its own making.
            ModelError: for a model without an imprint.
            UpdateError: where the imprint did not move.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "robbing-the-fed")
        if not isinstance(observation.model, ImprintedModel):
            raise ModelError("the model carries no imprint: set model.imprint, such as model.imprint=128")
        target = matching_target(observation, longest_unroll=observation.local_training.steps)
        weight, bias = (observation.update.tensors[f"imprint.{part}"].detach() for part in ("weight", "bias"))
        if not bias.any():
            raise UpdateError(
                "the imprint did not move: the units of these images are spent, as after the round for which the layer "
                "was planted; attack that round"
            )
        found = imprinted_images(weight, bias, target.count)
        low, high = observation.box
        images = found.view(-1, *observation.image_shape).clamp(low, high)
        notes = [*target.notes, *step_notes(target)]
        if len(images) < target.count:
            notes.append(f"{len(images)} bins hold all {target.count} images: some are means, or the first of several")
        if task:
            task.advance()
        return Reconstruction(
            observation.normalisation.invert(images).clamp(0, 1),
            target.labels[: len(images)],
            # Which label belongs to which of several images is not read, and the update depends on it.
            explained(observation, target, images, target.labels) if target.count == 1 else math.inf,
            1,
            time.perf_counter() - started,
            notes=tuple(notes),
        )


ROBBING_THE_FED = AttackKind(
    "robbing-the-fed",
    "images read off a layer that the server planted (Fowl et al. 2022)",
    RobbingTheFed,
    "an ImprintedModel, which the server made of the agreed one",
)

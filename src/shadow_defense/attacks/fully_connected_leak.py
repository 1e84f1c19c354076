"""The ratio leak of a fully connected layer (Phong et al. 2018; docs/attacks.md)."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shadow_defense.attacks.analytic import explained, layer_on_the_image, step_notes
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.target import matching_target
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.errors import UpdateError
from shadow_defense.progress import Task

NEGLIGIBLE = 1e-6
"""Share of the greatest bias entry below which a row says nothing but rounding."""


def leaked_input(
    weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"], kept: Bool[Tensor, "k d"] | None = None
) -> Float[Tensor, " d"]:
    """``x = dW^T db / ||db||^2``: the input of a linear layer from its update, by least squares over all rows.

    For one sample ``dW_j = db_j x`` in every row j, exactly; any common factor (the learning rate) cancels. For
    several samples it is a weighted mean of their inputs.

    Args:
        kept: which entries of the weight a defense let pass: each input is solved for from those alone, and is 0,
            which normalised images have for a mean, where there are none.

    >>> leaked_input(torch.tensor([[2.0, 4.0], [-1.0, -2.0]]), torch.tensor([2.0, -1.0])).tolist()
    [1.0, 2.0]
    """
    # In double precision and relative to the greatest entry, so that squares of small updates do not underflow.
    relative = bias.double() / bias.double().abs().max()
    squares = relative.square().sum() if kept is None else kept.double().T @ relative.square()
    solved = weight.double().T @ relative / squares / bias.double().abs().max()
    return torch.where(squares > 0, solved, 0.0).to(weight)


def leaked_rows(weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"], count: int) -> Float[Tensor, "m d"]:
    """Up to ``count`` rows of ``dW_j / db_j``, far from each other.

    With several samples a row is a weighted mean of the inputs that its unit was active for; where a unit saw one
    sample alone, it is that sample. Such rows are corners of the hull of all rows, and the point farthest from those
    taken so far is always a corner.
    """
    usable = bias.abs() > NEGLIGIBLE * bias.abs().max()
    rows = weight[usable].double() / bias[usable].double().unsqueeze(1)
    distances = (rows - rows.mean(dim=0)).norm(dim=1)
    taken: list[int] = []
    while len(taken) < min(count, len(rows)):
        taken.append(int(distances.argmax()))
        from_taken = (rows - rows[taken[-1]]).norm(dim=1)
        distances = from_taken if len(taken) == 1 else torch.minimum(distances, from_taken)
    return rows[taken].to(weight)


class FullyConnectedLeak(BaseModel):
    """The attack, which has nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: ClassVar[frozenset[Knowledge]] = frozenset()

    def steps(self) -> int:
        """Iterations of a whole attack, for progress."""
        return 1

    def reconstruct(self, observation: Observation, *, seed: int, task: Task | None = None) -> Reconstruction:
        """Read the image off the first layer's update: exact for one image and one local step, whatever the loss.

        Raises:
            ModelError: for a model that does not open with a fully connected layer with a bias.
            UpdateError: where that layer's bias did not move.
        """
        started = time.perf_counter()
        observation.threat_model.require(self.needs, "fully-connected-leak")
        layer = layer_on_the_image(observation.model, observation.image_shape)
        target = matching_target(observation, longest_unroll=1)
        weight, bias = (observation.update.tensors[f"{layer}.{part}"].detach() for part in ("weight", "bias"))
        if not bias.any():
            raise UpdateError(f"the bias of '{layer}' did not move: the update gives nothing to divide by")
        notes = [*target.notes, *step_notes(target)]
        if target.count == 1:
            kept = observation.matching.support.get(f"{layer}.weight")
            rows = leaked_input(weight, bias, kept).unsqueeze(0)
            if kept is not None:
                notes.append("solved from the entries that the defense let pass, the mean where there are none")
        else:
            rows = leaked_rows(weight, bias, target.count)
            notes.append("several images: rows are weighted means of them, pure where a unit was active for one alone")
        low, high = observation.box
        images = rows.view(-1, *observation.image_shape).clamp(low, high)
        if task:
            task.advance()
        return Reconstruction(
            observation.normalisation.invert(images).clamp(0, 1),
            target.labels[: len(images)],
            explained(observation, target, images, target.labels[: len(images)]),
            1,
            time.perf_counter() - started,
            notes=tuple(notes),
        )


FULLY_CONNECTED_LEAK = AttackKind(
    "fully-connected-leak",
    "the ratio of a fully connected layer's weight and bias updates (Phong et al. 2018)",
    FullyConnectedLeak,
    "opens with a fully connected layer that has a bias",
)

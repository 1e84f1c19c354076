"""What was measured of an update and its model, from which the audit's sentences follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shadow_defense.attacks.equal_steps import LIKE_SIGNS
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.losses import LossName

Exact = Literal["first layer", "chain"]
"""What allows an image to be solved for: a fully connected layer on the image, or a chain that R-GAP walks back."""

TOO_LONG = 3.0
"""Length of an update, relative to the parameters, that no training of a round has; 400 large steps came to 1.1."""


@dataclass(frozen=True)
class Facts:
    """All that :func:`shadow_defense.report.sentences.audit_diagnosis.diagnose` reads.

    Attributes:
        steps, batch_size: of the local training; None where it is not known.
        optimiser, loss: of the client, where they were told; None: not known.
        image_values: values of one image, channels included.
        update_values: values of the update that an attack matches.
        relative_norm: length of the update relative to that of the parameters it was added to.
        rounding: length of float32's rounding of the parameters, relative to the update's.
        zeros: share of the update's values that are exactly zero.
        zero_tensors: how many of ``tensors`` are zero altogether.
        equal: share of the values other than zero that are equally large (``attacks.equal_steps.equal_share``).
        noise: share of the last layer's update that cannot come from SGD on cross entropy (``impossible_share``);
            None where there is no such layer.
        noise_deviation: its standard deviation in each value, if it is the same in all.
        batch_norm: how clients use batch norm, where the model has it.
        statistics_shared: whether batch norm's running statistics are part of the update.
        hard: whether the model has ReLU-like kinks; ``pools``, ``drops``: max pooling, dropout that draws.
        exact: what allows an exact solution, for one image in one step.
        labels_known: whether the labels were given.
    """

    samples: int
    steps: int | None
    batch_size: int | None
    optimiser: OptimiserName | None
    loss: LossName | None
    image_values: int
    update_values: int
    tensors: int
    relative_norm: float
    rounding: float
    zeros: float
    zero_tensors: int
    equal: float
    noise: float | None
    noise_deviation: float | None
    batch_norm: Literal["train", "eval"] | None
    statistics_shared: bool
    hard: bool
    pools: bool
    drops: bool
    exact: Exact | None
    labels_known: bool

    @property
    def like_signs(self) -> bool:
        """Whether the update looks like the first step of Adam or RMSprop, or like signs alone."""
        return self.equal >= LIKE_SIGNS

    @property
    def plain(self) -> bool | None:
        """Whether the client trained by SGD on cross entropy; None: not known, or not what the update looks like."""
        if self.optimiser not in (None, "sgd") or self.loss not in (None, "ce"):
            return False
        if self.optimiser is None or self.loss is None or self.like_signs:
            return None
        return True

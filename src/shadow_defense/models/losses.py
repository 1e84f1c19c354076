"""The losses that a client may train with, on class indices or on a probability for each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from shadow_defense.models.settings import LossName


@dataclass(frozen=True)
class ClassLoss:
    """Mean loss of logits (n, k) to classes (n) or to probabilities (n, k).

    ``ce``: softmax cross entropy; ``bce``: sigmoid cross entropy of each logit with its one-hot target; ``mse``: their
    squared difference.

    >>> logits, label = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    >>> [round(ClassLoss(name)(logits, label).item(), 3) for name in ("ce", "bce", "mse")]
    [0.693, 0.693, 0.5]

    Attributes:
        label_smoothing: s in targets ``(1 - s) y + s / k``; of ``ce`` alone.
    """

    name: LossName = "ce"
    label_smoothing: float = 0.0

    def __call__(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"] | Float[Tensor, "n k"]) -> Tensor:
        if self.name == "ce":
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if not labels.is_floating_point():
            # torch.nn.functional.one_hot cannot be mapped.
            labels = (labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=labels.device)).to(logits)
        if self.name == "bce":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.mse_loss(logits, labels)

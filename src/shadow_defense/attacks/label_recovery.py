"""Which labels a batch had, from the gradient of the last linear layer (spec/attacks.md, section 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.errors import ModelError


def last_linear_layer(model: nn.Module) -> str:
    """The name of the last ``nn.Linear`` in definition order; raises :class:`ModelError` for a model without one."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ModelError("the model has no linear layer to recover labels from: use a threat model that grants labels")
    return names[-1]


def head_bias_gradient(model: nn.Module, gradients: Mapping[str, Tensor]) -> Float[Tensor, "k"]:
    """The gradient of the last layer's bias; for a layer without one, the row sums of its weight's (iDLG)."""
    layer = last_linear_layer(model)
    bias = gradients.get(f"{layer}.bias")
    return gradients[f"{layer}.weight"].sum(dim=1) if bias is None else bias


def recover_labels(bias_gradient: Float[Tensor, "k"], count: int) -> Int64[Tensor, "count"]:
    """The labels of ``count`` images, sorted; any positive scale of the gradient gives the same.

    With cross entropy the bias gradient of class j is ``mean_n (p_nj - [y_n = j])``: negative entries are certainly
    present. Each is taken once and lowered by ``m = sum of the negative entries / count`` (the weight of one image);
    then the smallest entry is taken, again and again, until there are ``count`` labels. Exact for one image.

    >>> recover_labels(torch.tensor([0.3, -0.7, 0.4]), 1).tolist()
    [1]
    """
    remaining = bias_gradient.detach().double().clone()
    negative = (remaining < 0).nonzero().flatten()
    # The most negative first: noise may leave more negative entries than there are images.
    negative = negative[remaining[negative].argsort()]
    weight = remaining[negative].sum() / count
    labels = negative.tolist()[:count]
    for label in labels:
        remaining[label] -= weight
    while len(labels) < count:
        label = int(remaining.argmin())
        labels.append(label)
        remaining[label] -= weight if weight < 0 else -1.0 / count
    return torch.tensor(sorted(labels))

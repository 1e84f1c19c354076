"""Rules that tell a batch's labels from the gradient of the last linear layer (docs/attacks.md).

With cross entropy the gradient of the logits is ``p_nj - [y_n = j]`` for image n and class j; the bias gradient is its
mean over the images, and a row of the weight gradient its mean times the features that the layer reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class HeadGradient(NamedTuple):
    """What the rules read of the last layer.

    Attributes:
        weight: its gradient.
        bias: its gradient; for a layer without one the row sums of the weight's, which have the same signs where
            features are positive. Any positive scale, but for the multi-step rule: the mean over the local steps.
        probabilities: of each class, on the average over images and steps; the multi-step rule alone asks for them.
    """

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    probabilities: Float[Tensor, " k"] | None = None


def row_sums(head: HeadGradient, count: int) -> Int64[Tensor, " found"]:
    """``argmin_j sum_d dW[j, d]`` (iDLG, Zhao et al. 2020): the one label of one image.

    Where features are positive the true class's row alone has a negative sum. Of more images: the ``count`` smallest
    sums, no class twice.

    >>> row_sums(HeadGradient(torch.tensor([[0.2, 0.1], [-0.5, -0.2], [0.3, 0.1]]), torch.zeros(3)), 1).tolist()
    [1]
    """
    return head.weight.sum(dim=1).argsort()[:count].sort().values


def negative_bias(head: HeadGradient, count: int) -> Int64[Tensor, " found"]:
    """``{j : db_j < 0}``: the classes that are certainly present, each once; fewer than ``count`` where some repeat.

    Noise may leave more than ``count``: the most negative ones then.

    >>> negative_bias(HeadGradient(torch.zeros(4, 1), torch.tensor([0.2, -0.4, 0.3, -0.1])), 3).tolist()
    [1, 3]
    """
    order = head.bias.argsort()[:count]
    return order[head.bias[order] < 0].sort().values


def column_minimum(head: HeadGradient, count: int) -> Int64[Tensor, " found"]:
    """The ``count`` classes of least ``min_d dW[j, d]`` (Yin et al. 2021); no class twice.

    >>> gradient = torch.tensor([[0.3, 0.1], [-0.9, 0.8], [0.2, 0.2], [-0.1, -0.1]])
    >>> column_minimum(HeadGradient(gradient, gradient.sum(1)), 2).tolist()
    [1, 3]
    """
    return head.weight.amin(dim=1).argsort()[:count].sort().values


def bias_corrected(head: HeadGradient, count: int) -> Int64[Tensor, " found"]:
    """The labels of ``count`` images, with repeats.

    Classes with a negative ``db_j`` are certainly present. Each is taken once and lowered by ``m = sum of the negative
    entries / count`` (the weight of one image); then the smallest entry is taken, again and again, until there are
    ``count`` labels. Exact for one image.

    >>> bias_corrected(HeadGradient(torch.zeros(3, 1), torch.tensor([0.1, -0.7, 0.6])), 2).tolist()
    [1, 1]
    """
    remaining = head.bias.detach().double().clone()
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
    return torch.tensor(sorted(labels), device=head.bias.device)


def multi_step(head: HeadGradient, count: int) -> Int64[Tensor, " found"]:
    """``n_j = N (p_j - db_j)``, in whole numbers that sum to N = ``count``: how often each class is among the images.

    For one step this is what the bias gradient says, solved for the labels; for several it holds with means over the
    steps. Unlike the other rules it does not take the labels of images that the model has learned for absent.

    >>> gradient = HeadGradient(torch.zeros(2, 1), torch.tensor([-0.2, 0.2]), torch.tensor([0.55, 0.45]))
    >>> multi_step(gradient, 4).tolist()
    [0, 0, 0, 1]
    """
    assert head.probabilities is not None
    shares = head.probabilities.detach() - head.bias.detach()
    counts = whole_counts(shares, count)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def whole_counts(shares: Float[Tensor, " k"], total: int) -> Int64[Tensor, " k"]:
    """Whole numbers in proportion to ``shares`` that sum to ``total``, by the largest remainders.

    Negative shares count as none; where none is positive, all classes have the same.

    >>> whole_counts(torch.tensor([0.5, 0.3, 0.2, -0.1]), 4).tolist()
    [2, 1, 1, 0]
    """
    positive = shares.double().clamp_min(0)
    if not positive.sum() > 0:
        positive = torch.ones_like(shares)
    wanted = total * (positive / positive.sum())
    counts = wanted.floor().long()
    missing = total - int(counts.sum())
    counts[(wanted - counts).argsort(descending=True)[:missing]] += 1
    return counts


LabelRule = Callable[[HeadGradient, int], Tensor]

LABEL_RULES: dict[str, LabelRule] = {
    "row-sums": row_sums,
    "negative-bias": negative_bias,
    "column-minimum": column_minimum,
    "bias-corrected": bias_corrected,
    "multi-step": multi_step,
}
"""All give sorted labels: the order of a batch is not in its gradient."""

"""How sensitive parameters are to the images, and slices of them that are equally so: the parts of GradDefense."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.defenses.clipping import NORM_SLACK
from shadow_defense.models.functional import LossFunction, loss_gradients
from shadow_defense.seeds import standard_normal

SLACK = Fraction(1, 10**9)
"""Relative to a slice's mark: a sum that rounding has left this close below it has reached it."""

CHUNK = 10
"""Images whose gradients are in memory at once, with the graph of their second derivatives."""


def balanced_choice(labels: Int64[Tensor, " n"], count: int, draws: torch.Generator) -> list[int]:
    """``count`` indices at random, as many of each class as there are; all of them where there are fewer.

    >>> sorted(balanced_choice(torch.tensor([0, 0, 0, 0, 1]), 2, torch.Generator()))[1]
    4
    """
    order = torch.randperm(len(labels), generator=draws).tolist()
    seen: Counter[int] = Counter()
    ranks = {}
    for index in order:
        label = int(labels[index])
        ranks[index] = seen[label]
        seen[label] += 1
    # Sorting is stable: within a rank the random order stays.
    return sorted(order, key=ranks.__getitem__)[:count]


def tensor_sensitivities(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    loss_fn: LossFunction,
) -> dict[str, float]:
    """``mean_b ||d (sum of the entries of g_l) / d x_b||_2`` for every parameter tensor l (docs/defenses.md).

    One second-order backward pass for each tensor: of a deep network, minutes on a CPU. ``g_l`` is taken as the
    gradient of the images' summed loss: the common factor changes no slice. Under cross-entropy the last layer's
    entries add up to zero, as probabilities and labels do: it counts as insensitive, although it gives the label away.

    Args:
        model: in eval mode, where no image reaches another's derivative.
        parameters, buffers: as :func:`split_state` gives them.
        images: normalised.
        loss_fn: a mean over its images.
    """
    totals = dict.fromkeys(parameters, 0.0)
    for part, wanted in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        inputs = part.detach().clone().requires_grad_()
        gradients = loss_gradients(model, parameters, buffers, inputs, wanted, loss_fn, create_graph=True)
        for name, gradient in gradients.items():
            if gradient.requires_grad:
                (slopes,) = torch.autograd.grad(
                    len(part) * gradient.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                totals[name] += float(slopes.flatten(1).norm(dim=1).double().sum())
    return {name: total / len(images) for name, total in totals.items()}


def equal_slices(sizes: Sequence[int], sensitivities: Sequence[float], count: int) -> list[tuple[int, int]]:
    """The parameters, in order, cut into at most ``count`` slices of about the same sensitivity.

    Atoms of ``A = gcd(sizes)`` parameters weigh ``sensitivity_l / (n_l / A)``; a slice ends with the atom that brings
    its sum to ``sum(sensitivities) / count``, and the last one takes the rest (docs/defenses.md). What
    goes beyond is not carried over, so that few heavy atoms make fewer slices.

    Args:
        sizes: n_l, above 0.
        sensitivities: as many, finite, 0 or more; all zeros are taken as equally sensitive parameters.

    Returns:
        (start, stop) of each slice in the flattened and concatenated parameters; together they are all of them.

    >>> equal_slices([4, 2, 2], [4.0, 1.0, 3.0], 4)  # atoms of 2 parameters that weigh 2, 2, 1, 3
    [(0, 2), (2, 4), (4, 8)]
    """
    atom = math.gcd(*sizes)
    totals = [Fraction(value) for value in sensitivities] if any(sensitivities) else [Fraction(n) for n in sizes]
    mark = sum(totals, Fraction(0)) / count * (1 - SLACK)
    slices: list[tuple[int, int]] = []
    opened, position, filled = 0, 0, Fraction(0)
    for size, total in zip(sizes, totals, strict=True):
        weight, end = total * atom / size, position + size
        while weight and len(slices) < count - 1:
            atoms = math.ceil((mark - filled) / weight)
            if position + atoms * atom > end:
                break
            position += atoms * atom
            slices.append((opened, position))
            opened, filled = position, Fraction(0)
        filled += weight * ((end - position) // atom)
        position = end
    return [*slices, (opened, position)] if opened < position else slices


def add_to_slices(
    tensors: Mapping[str, Tensor], slices: Sequence[tuple[int, int]], sigma: float, draws: torch.Generator
) -> dict[str, Tensor]:
    """``g + N(0, sigma^2)`` on the entries within ``slices`` of the concatenated tensors; the others copied.

    Args:
        sigma: standard deviation, 0 or more, in the tensors' units.
        draws: CPU generator. The published code seeds it with 0, so that anyone can take the noise away again.
    """
    sizes = [tensor.numel() for tensor in tensors.values()]
    noise = torch.zeros(sum(sizes))
    for start, stop in slices:
        noise[start:stop] = sigma * standard_normal((stop - start,), draws)
    parts = zip(tensors.items(), noise.split(sizes), strict=True)
    return {name: tensor + part.view(tensor.shape).to(tensor) for (name, tensor), part in parts}


def clip_slices(
    gradients: Mapping[str, Float[Tensor, "n ..."]], slices: Sequence[tuple[int, int]], clip: float
) -> dict[str, Float[Tensor, "..."]]:
    """The mean over images of their gradients, each scaled on each slice to an L2 norm of at most ``clip``."""
    whole = torch.cat([gradient.reshape(len(gradient), -1) for gradient in gradients.values()], dim=1)
    for start, stop in slices:
        norms = torch.linalg.vector_norm(whole[:, start:stop], dim=1, keepdim=True)
        whole[:, start:stop] *= (clip / (norms + NORM_SLACK)).clamp(max=1)
    parts = whole.mean(0).split([gradient[0].numel() for gradient in gradients.values()])
    return {name: part.view(gradients[name].shape[1:]).clone() for name, part in zip(gradients, parts, strict=True)}

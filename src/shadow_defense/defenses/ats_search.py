"""How policies for ATS are found (Gao et al., CVPR 2021): random ones, ranked by what they hide and what they keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation, measure_normalisation
from shadow_defense.defenses.dp_sgd import per_sample_gradients
from shadow_defense.defenses.transformations import POOL, SubPolicy, apply_policy
from shadow_defense.errors import DataError
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import training_mode
from shadow_defense.models.settings import ModelSettings
from shadow_defense.seeds import named_generator, seed_for

EPSILON = 1e-5
"""Added to eigenvalues before logarithm and division."""


@dataclass(frozen=True)
class ScoredPolicy:
    """A sub-policy and its scores.

    Attributes:
        privacy, privacy_variance: mean and variance over images of :func:`similarity_areas`; lower hides more.
        accuracy: mean over untrained networks of :func:`accuracy_score`; higher promises better training.
    """

    steps: SubPolicy
    privacy: float
    privacy_variance: float
    accuracy: float


def similarity_areas(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    noise: Float[Tensor, "n c h w"],
    steps: int = 20,
) -> Float[Tensor, " n"]:
    """The privacy score (docs/defenses.md): how early on the way from noise to an image its gradient appears.

    Area (trapezoids) under ``i / steps -> mean over tensors of cos(grad L(x_i), grad L(x))`` for
    ``x_i = (i / steps) x + (1 - i / steps) noise``. In [-1, 1], lower is better: a gradient that looks like that of x
    only close to x gives a search nothing to climb. The published division by the curve's largest value is left out:
    that is 1, at x itself.

    Args:
        model: no layer may mix samples; in whatever mode it is.
        images, noise: normalised.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def gradients(points: Tensor) -> dict[str, Tensor]:
        return per_sample_gradients(model, parameters, points, labels, F.cross_entropy)

    target = gradients(images)
    curve = []
    for step in range(steps):
        share = step / steps
        found = gradients(share * images + (1 - share) * noise)
        cosines = [F.cosine_similarity(found[name].flatten(1), target[name].flatten(1)) for name in target]
        curve.append(torch.stack(cosines).mean(0))
    curve.append(torch.ones_like(curve[0]))
    return torch.trapezoid(torch.stack(curve), dx=1 / steps, dim=0)


def input_jacobians(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """The gradient of each image's summed logits with respect to its pixels."""
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        (jacobians,) = torch.autograd.grad(model(inputs).sum(), inputs)
    return jacobians.flatten(1)


def accuracy_score(jacobians: Float[Tensor, "n d"]) -> float:
    """``-sum_v ln(v + 1e-5) + 1 / (v + 1e-5)`` over the eigenvalues v of the rows' correlations (docs/defenses.md).

    At most about -n, where no two rows are correlated: a network that treats images alike before training will
    hardly tell them apart after it. Minus infinity where a row is constant.

    >>> round(accuracy_score(torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])), 4)
    -2.0
    """
    correlations = torch.corrcoef(jacobians.double())
    if not torch.isfinite(correlations).all():
        return -math.inf
    values = torch.linalg.eigvalsh(correlations).clamp_min(0) + EPSILON
    return -float((values.log() + 1 / values).sum())


def random_steps(draws: torch.Generator, length: int = 3) -> SubPolicy:
    """``length`` uniform draws from the pool, with one more choice in each: nothing (the published index -1)."""
    indices = torch.randint(-1, len(POOL), (length,), generator=draws).tolist()
    return tuple(POOL[index] for index in indices if index >= 0)


def rank(scored: Sequence[ScoredPolicy], kept_share: float = 0.5) -> list[ScoredPolicy]:
    """The best first, by ``0.7 norm(privacy) + 0.3 norm(privacy_variance)``, of those that promise to train.

    norm scales to [0, 1] over the policies that are kept: the ``kept_share`` with the highest accuracy score. The
    published threshold, -85, cannot be reached with 100 images, whose score is -100 at best.
    """
    count = max(1, round(kept_share * len(scored)))
    kept = sorted(scored, key=lambda each: -each.accuracy)[:count]

    def normed(values: list[float]) -> list[float]:
        low, span = min(values), max(values) - min(values)
        return [(value - low) / span if span else 0.0 for value in values]

    means, variances = normed([each.privacy for each in kept]), normed([each.privacy_variance for each in kept])
    marks = [0.7 * mean + 0.3 * variance for mean, variance in zip(means, variances, strict=True)]
    return [kept[index] for index in sorted(range(count), key=marks.__getitem__)]


def search_policy(
    data: ImageSet,
    model: ModelSettings,
    *,
    classes: int,
    seed: int,
    candidates: int = 200,
    images_per_class: int = 5,
    jacobian_images: int = 100,
    networks: int = 10,
    epochs: int = 5,
) -> list[ScoredPolicy]:
    """Random sub-policies of up to three steps, scored; in the order of their drawing, for :func:`rank`.

    Privacy is judged by a network that was trained on a tenth of the images, the accuracy by untrained ones
    (docs/defenses.md). All policies meet the same images, noise and networks.

    Args:
        data: with ``images_per_class`` images of each class beyond its first tenth.
        model: without batch norm, which mixes samples.
        epochs: of training on the tenth.

    Raises:
        DataError: where a class has too few images.
    """
    normalisation = measure_normalisation(data)
    order = torch.randperm(len(data), generator=named_generator(seed, "ats images"))
    tenth, rest = order[: len(data) // 10], order[len(data) // 10 :]
    judged = torch.cat([_first_of_class(data.labels, rest, label, images_per_class) for label in range(classes)])
    images, labels = data.images[judged].float() / 255, data.labels[judged]
    noise = torch.randn(images.shape, generator=named_generator(seed, "ats noise"))

    def build(number: int) -> nn.Module:
        size = data.image_size
        return build_model(
            model, channels=data.channels, classes=classes, image_size=size, seed=seed_for(seed, "ats network", number)
        )

    judge = _trained(build(0), data.subset(tenth.tolist()), normalisation, epochs, seed)
    untrained = [build(number) for number in range(1, networks + 1)]
    shown = data.images[rest[:jacobian_images]].float() / 255
    scored = []
    for number in range(candidates):
        steps = random_steps(named_generator(seed, "ats candidate", number))
        draws = named_generator(seed, "ats signs")
        areas = similarity_areas(judge, normalisation.apply(apply_policy(images, [steps], draws)), labels, noise)
        changed = normalisation.apply(apply_policy(shown, [steps], draws))
        promise = [accuracy_score(input_jacobians(network, changed)) for network in untrained]
        scored.append(ScoredPolicy(steps, float(areas.mean()), float(areas.var()), sum(promise) / len(promise)))
    return scored


def _first_of_class(labels: Tensor, order: Tensor, label: int, count: int) -> Tensor:
    found = order[labels[order] == label][:count]
    if len(found) < count:
        raise DataError(f"the search for policies wants {count} images of class {label} and has {len(found)}: add some")
    return found


def _trained(model: nn.Module, data: ImageSet, normalisation: Normalisation, epochs: int, seed: int) -> nn.Module:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draws = named_generator(seed, "ats order")
    with training_mode(model, True), torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.randperm(len(data), generator=draws).split(32):
                optimiser.zero_grad()
                images = normalisation.apply(data.images[batch].float() / 255)
                F.cross_entropy(model(images), data.labels[batch]).backward()
                optimiser.step()
    return model.eval()

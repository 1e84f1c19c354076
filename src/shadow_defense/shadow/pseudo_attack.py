"""Step 4: the shadow generator plays the attacker on the client's own gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.models.adam import Adam
from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.functional import LossFunction, split_state, training_mode
from shadow_defense.models.image_priors import frobenius_variation, statistics_distance
from shadow_defense.models.simulated_gradient import Derivative, SimulatedGradient, layout_for
from shadow_defense.shadow.batch import ShadowBatch
from shadow_defense.shadow.task import TrainingTask, check_finite, model_in_words
from shadow_defense.shadow.victim import VictimSignals


class ShadowWeights(NamedTuple):
    """The weights of the five terms of the loss; the defaults are the paper's."""

    gradient: float = 1e-2
    batch_norm: float = 1e-2
    total_variation: float = 1e-5
    norm: float = 1e2
    reconstruction: float = 1.0


class Tuned(NamedTuple):
    """The parameters that a pseudo attack ended with, the loss before each iteration, and how it was differentiated."""

    parameters: dict[str, Tensor]
    losses: list[float]
    derivative: Derivative


class ShadowLoss(NamedTuple):
    """The weighted terms of the shadow loss and their sum, each a scalar on the graph."""

    total: Float[Tensor, ""]
    gradient: Float[Tensor, ""]
    batch_norm: Float[Tensor, ""]
    total_variation: Float[Tensor, ""]
    norm: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]


def shadow_loss(
    fake: Float[Tensor, "n c h w"],
    real: Float[Tensor, "n c h w"],
    fake_gradients: Mapping[str, Tensor],
    victim: VictimSignals,
    fake_statistics: Mapping[str, BatchStatistics],
    weights: ShadowWeights = ShadowWeights(),
) -> ShadowLoss:
    """How well the generator's batch imitates the client's (step 4 of docs/method.md).

    ``L = a sum_layers ||g - g*||_2 + b sum_BN (||mu - mu*||_2 + ||var - var*||_2) + c TV(G) + d ||G||_2 / (H W)^2
    + e MSE(G, x)``, with images in normalised units and a to e from ``weights``.
    """
    height, width = fake.shape[-2:]
    # Some twenty layers: one call for all of them, where a call takes longer than a layer's numbers.
    differences = torch._foreach_sub([fake_gradients[name] for name in victim.gradients], [*victim.gradients.values()])
    mismatch = torch.stack(torch._foreach_norm(differences)).sum()
    gradient = weights.gradient * mismatch
    batch_norm = weights.batch_norm * statistics_distance(fake_statistics, victim.statistics, fake)
    total_variation = weights.total_variation * frobenius_variation(fake)
    norm = weights.norm * torch.linalg.vector_norm(fake) / (height * width) ** 2
    reconstruction = weights.reconstruction * (fake - real).square().mean()
    total = gradient + batch_norm + total_variation + norm + reconstruction
    return ShadowLoss(total, gradient, batch_norm, total_variation, norm, reconstruction)


def learning_rate_for(batch_size: int) -> float:
    """The paper's learning rates: 1e-4 for one-sample clients, 1e-3 for batches of 4, 2e-3 for 8.

    Other sizes follow the line through the last two, 2.5e-4 an image; the paper names no others.

    >>> learning_rate_for(1), learning_rate_for(4), learning_rate_for(8)
    (0.0001, 0.001, 0.002)
    """
    return 1e-4 if batch_size == 1 else 2.5e-4 * batch_size


def pseudo_attack(
    render: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    synthesis: Mapping[str, Tensor],
    z: Float[Tensor, " m *code"],
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    victim: VictimSignals,
    *,
    model: nn.Module,
    global_state: nn.Module | Mapping[str, Tensor],
    loss_fn: LossFunction,
    iterations: int = 5,
    learning_rate: float = 1e-3,
    weights: ShadowWeights = ShadowWeights(),
    derivative: Derivative = "unknown",
) -> Tuned:
    """Fine-tune a copy of the synthesis parameters to imitate the attacker; latent codes stay fixed.

    The fake batch's gradients are taken at the *global* model in eval mode, on the graph, so that the gradient
    term really moves the generator.

    Args:
        render: synthesis parameters and the codes of m samples to n normalised images (a sample may be there twice).
        synthesis: the generator's current synthesis parameters, by name; left alone.
        images, labels: the clean batch.
        global_state: this round's global model.
        derivative: what an earlier pseudo attack on the same model found out.

    Raises:
        DefenseError: when a parameter ended as NaN or infinity.
    """
    tuned = {name: tensor.detach().clone().requires_grad_() for name, tensor in synthesis.items()}
    optimiser = Adam(tuned.values(), fused=True)
    own, buffers = split_state(model, global_state, like=images)
    lay = layout_for(model, own, buffers, images)
    victim = VictimSignals({name: lay(tensor) for name, tensor in victim.gradients.items()}, victim.statistics)
    parameters = {name: lay(tensor) for name, tensor in own.items()}
    losses = []
    with training_mode(model, False), BatchStatisticsRecorder(model) as recorder:
        gradient = SimulatedGradient(model, parameters, buffers, loss_fn, recorder, derivative)
        for _ in range(iterations):
            fake = render(tuned, z)
            gradients, statistics = gradient(fake, labels)
            loss = shadow_loss(fake, images, gradients, victim, statistics, weights)
            slopes = torch.autograd.grad(loss.total, list(tuned.values()), allow_unused=True)
            optimiser.step(slopes, learning_rate)
            losses.append(loss.total.item())
    found = {name: tensor.detach() for name, tensor in tuned.items()}
    check_finite(
        f"the pseudo attack (loss {losses[-1]})", found, "it diverged: lower attack_learning_rate; no update leaves"
    )
    return Tuned(found, losses, gradient.method)


def attack_batch(
    render: Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor],
    synthesis: Mapping[str, Tensor],
    codes: Tensor,
    batch: ShadowBatch,
    victim: VictimSignals,
    task: TrainingTask,
    *,
    iterations: int,
    learning_rate: float | None,
    weights: ShadowWeights,
    derivative: Derivative,
) -> tuple[dict[str, Tensor], Derivative]:
    """The generator's parameters after :func:`pseudo_attack` on a batch, and how it was differentiated.

    Args:
        render: images from parameters, codes, and images of the size that is wanted.
        learning_rate: None: by the size of the batch.
    """
    with model_in_words():
        tuned = pseudo_attack(
            # An image that is in the batch twice has one code, and counts twice in the gradient.
            lambda parameters, own: render(parameters, own, batch.images)[batch.places],
            synthesis,
            codes,
            batch.images,
            batch.labels,
            victim,
            model=task.model,
            global_state=task.global_state,
            loss_fn=task.loss_fn,
            iterations=iterations,
            learning_rate=learning_rate or learning_rate_for(len(batch.images)),
            weights=weights,
            derivative=derivative,
        )
    return tuned.parameters, tuned.derivative

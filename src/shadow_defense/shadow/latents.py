"""Step 2: a latent code for every training image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.models.adam import Adam

WEIGHT_DECAY = 0.01
"""AdamW's default in torch."""


@dataclass(frozen=True)
class Inversion:
    """What latent inversion found.

    Attributes:
        z: (n, *code), the best code of each image, in the latent space of the starting codes.
        error: (n,), mean squared error of its image, in normalised units.
        iterations: the number of iterations that ran before every image had stopped improving.
    """

    z: Float[Tensor, " n *code"]
    error: Float[Tensor, " n"]
    iterations: int


def halvings(iterations: int) -> tuple[int, ...]:
    """The iterations at which the learning rate is halved: 3/8, 5/8 and 7/8 of the way.

    >>> halvings(500)
    (187, 312, 437)
    """
    return tuple(iterations * eighths // 8 for eighths in (3, 5, 7))


def invert_latents(
    render: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n c h w"],
    initial: Float[Tensor, " n *code"],
    *,
    learning_rate: float = 1e-3,
    iterations: int = 500,
    patience: int = 5,
    warm_up: int = 50,
) -> Inversion:
    """``z_i = argmin_z MSE(render(z), x_i)`` by AdamW, all images in one batch.

    Each image keeps its best code and stops after ``patience`` iterations in a row without improvement, counted
    after ``warm_up`` iterations. The loss is summed over images and AdamW works entry by entry, so no image's code
    depends on the others. The authors' code never clears the gradient of z between iterations and never fills the
    list that its early stop reads; both are mended here (step 2 of docs/method.md).

    Args:
        render: latent codes to normalised images; its parameters are left alone.
        images: normalised images to encode.
        initial: starting codes, of any shape: drawn from a standard normal distribution, or encoded from such.
    """
    z = initial.detach().clone().requires_grad_()
    optimiser, halved = Adam([z], weight_decay=WEIGHT_DECAY), halvings(iterations)
    best_z = initial.detach().clone()
    best_error = images.new_full((len(images),), torch.inf)
    stale = torch.zeros(len(images), dtype=torch.long, device=images.device)
    done = 0
    for iteration in range(iterations):
        error = (render(z) - images).square().mean(dim=(1, 2, 3))
        improved = (error.detach() < best_error) & (stale < patience)
        best_error = torch.where(improved, error.detach(), best_error)
        best_z[improved] = z.detach()[improved]
        if iteration >= warm_up:
            stale = torch.where(improved, 0, stale + 1)
        done = iteration + 1
        if bool((stale >= patience).all()):
            break
        rate = learning_rate * 0.5 ** sum(each <= iteration for each in halved)
        optimiser.step(torch.autograd.grad(error.sum(), z), rate)
    return Inversion(best_z, best_error, done)

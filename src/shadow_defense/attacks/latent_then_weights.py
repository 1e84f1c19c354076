"""The two searches that GIAS and the paper's attack share: latent codes, then the generator's weights."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.generator_prior import GeneratorPrior
from shadow_defense.attacks.joint_search import JointFound, search_jointly
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.search import step_schedule
from shadow_defense.progress import Task


def latent_then_weights(
    prior: GeneratorPrior,
    objective: MatchingObjective,
    codes: Float[Tensor, "r n *code"],
    *,
    iterations: tuple[int, int],
    learning_rates: tuple[float, float],
    schedule_factor: float,
    generator_per_image: bool,
    task: Task | None = None,
) -> tuple[Float[Tensor, "n c h w"], float, tuple[float, ...]]:
    """Search the codes of all restarts, then from the best of them the synthesis parameters, with the codes fixed.

    The mapping network stays as it is. Both searches are Adam with the learning rate multiplied by
    ``schedule_factor`` at 3/8, 5/8 and 7/8 of the iterations.

    Args:
        iterations, learning_rates: of the two searches; 0 iterations leave the second out.
        generator_per_image: a copy of the parameters for each image, or one for all.

    Returns:
        Normalised images, their matching loss, and the total loss on the way.
    """
    schedule = partial(step_schedule, factor=schedule_factor)
    every = -(-sum(iterations) // 100)

    def of_codes(variables: tuple[Tensor, ...]) -> Tensor:
        return prior.images(variables[0])

    first = search_jointly(
        lambda variables: objective(of_codes(variables)),
        [codes],
        iterations=iterations[0],
        learning_rate=learning_rates[0],
        schedule=schedule,
        record_every=every,
        task=task,
    )
    chosen = first.best_restart()
    found = first.variables[0][chosen]
    history = first.history[chosen].tolist()
    if not iterations[1]:
        with torch.no_grad():
            return prior.images(found.unsqueeze(0))[0], float(first.matching[chosen]), tuple(history)
    weights = prior.weights()
    copies = len(found) if generator_per_image else 1
    # One row, for one restart, of all copies.
    started = [weight.expand(1, copies, *weight.shape) for weight in weights.values()]

    def of_weights(variables: tuple[Tensor, ...]) -> Tensor:
        return prior.images_of_weights(list(weights), [variable[0] for variable in variables], found)

    second: JointFound = search_jointly(
        lambda variables: objective(of_weights(variables)),
        started,
        iterations=iterations[1],
        learning_rate=learning_rates[1],
        schedule=schedule,
        record_every=every,
        task=task,
    )
    with torch.no_grad():
        images = of_weights(second.variables)[0]
    return images, float(second.matching[0]), tuple(history + second.history[0].tolist())

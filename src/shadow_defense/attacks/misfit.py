"""How badly a reconstruction explains an update, on one scale for all attacks: by which one is believed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from shadow_defense.attacks.adaptive.fitting import adaptation_of
from shadow_defense.attacks.adaptive.settings import AdaptiveSettings
from shadow_defense.attacks.analytic import explained
from shadow_defense.attacks.local_steps import as_single_step
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.target import client_simulation

JUDGE = "adaptive server"
"""The threat model of who chooses: it knows the local training and the defense."""


def misfit(observation: Observation, found: Reconstruction, seed: int) -> float | None:
    """``D(T(U(x)), T(U*))``: the distance of the update that the images x would have caused to the observed one.

    D is ``1 - cos`` and T what is fitted to the defense (docs/attacks.md), where that is granted, whatever the attack
    itself compared, so that reconstructions of one update by several attacks are comparable; those of different updates
    are not. U is the client's whole training where x are all of its images, else one average step on those that there
    are.

    Args:
        observation: of :data:`JUDGE`, where the reconstructions of several attacks are to be compared; with the local
            training.
        seed: of what a model draws that is a random layer.

    Returns:
        None where the images are not finite.
    """
    if not found.images.isfinite().all():
        return None
    simulation = client_simulation(observation, longest_unroll=observation.local_training.steps)
    if len(found.images) != simulation.count:
        one_step = replace(as_single_step(simulation.local), batch_size=len(found.images))
        simulation = replace(simulation, local=one_step)
    fitted = observation
    if observation.grants("defense"):
        fitted = replace(observation, matching=adaptation_of(observation, AdaptiveSettings().draws))
    images = observation.normalisation.apply(found.images.to(observation.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        distance = explained(fitted, simulation, images, found.labels.to(images.device))
    return distance if math.isfinite(distance) else None

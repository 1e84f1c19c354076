"""An attacker that owns the shadow generator, and takes off the noise that a defense is expected to have put on."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel
from torch import Tensor

from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.threat_model import Knowledge
from shadow_defense.data.dataset import no_images
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.seeds import seed_for

NEEDS: frozenset[Knowledge] = frozenset({"generator", "defense"})

MOST_VALUES = 256
"""Values by which the distribution of an image's noise is told; each costs a copy of the image in memory."""

LEAST_SPREAD = 1 / 255
"""No image of whole bytes is smoother than that."""


def subtract_expected_noise(
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    observation: Observation,
    kind: DefenseKind,
    settings: BaseModel,
    *,
    rounds: int,
    iterations: int = 3,
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Reconstructions less the noise that a client with these images is expected to have added, given what is seen.

    An update gives away the protected image ``y = x + N(x)``. N is what the defense itself does with the image, the
    model, the round and the generator. It is solved for x by
    ``x_0 = m(y)``, ``x_k+1 = clip(y - E[N(x_k) | y - m(x_k)], 0, 1)`` with :func:`expected_noise` and m of
    :func:`neighbourhood`.

    It says how strong the noise is and on how many pixels, but not on which: Shadow's map follows the latent code,
    which stays near a random start that only the client knows. Hence the expectation. Subtracting the map of a code
    of one's own, ``x <- y - N(x)``, takes noise from where none was put and makes the images worse, even when N is
    taken at the true image. The rest of what the attacker cannot know it replaces by what it has: the client's shadow
    generator after earlier rounds by the one that all were given; momentum of earlier rounds by none; which images
    shared a batch, and the local model before it, by the order given and the global model.

    Args:
        images: what another attack rebuilt, in [0, 1].
        labels: true or recovered class of each image.
        observation: gives generator, global model, normalisation and round; where "local training" is granted also
            the batch size, else all images are one batch.
        kind: the client's defense, which :attr:`DefenseKind.adds_noise_to_images`.
        settings: the client's, from ``observation.defense``.
        rounds: R, which the strength depends on and an observation does not hold.
        iterations: of the fixed point, each with the defense's own work on a batch.
        seed: of the attacker's own draws.

    Raises:
        ThreatModelError: where the generator or the defense is not granted.
        GeneratorError: where there is no generator, or it doesn't fit the images.
        DataError: for images that hold NaN or infinity.
    """
    observation.threat_model.require(NEEDS, "the expected noise")
    normalisation = observation.normalisation
    generator = observation.generator
    local = observation.local_training if observation.grants("local training") else None
    context = round_of(observation, rounds)
    cleaned = []
    size = len(images) if local is None else local.batch_size
    for rebuilt, classes in zip(images.split(size), labels.split(size), strict=True):
        estimate = neighbourhood(rebuilt)
        for iteration in range(iterations):
            # Anew for every estimate: a defense may remember what it has seen.
            draws = seed_for(seed, "expected noise", iteration)
            defense = kind.build(
                settings, Resources(generator, normalisation, no_images(), observation.classes, "simulated", draws)
            )
            batch = Batch(normalisation.apply(estimate), classes, tuple(map(str, range(len(estimate)))))
            defense.prepare(batch.images, batch.sample_ids)
            defense.begin_round(context)
            protected = normalisation.invert(defense.protect_batch(batch, context).images)
            simulated = protected - estimate
            surplus = rebuilt - neighbourhood(estimate)
            noise = [expected_noise(each, values) for each, values in zip(surplus, simulated, strict=True)]
            estimate = (rebuilt - torch.stack(noise)).clamp(0, 1)
        cleaned.append(estimate)
    return torch.cat(cleaned)


def round_of(observation: Observation, rounds: int) -> RoundContext:
    """What a client's defense was told of the round, as far as it is seen; of ``rounds`` in all."""
    model = copy.deepcopy(observation.model)
    model.load_state_dict(dict(observation.global_state))
    rate = observation.local_training.learning_rate if observation.grants("local training") else 0.0
    return RoundContext(model, observation.global_state, observation.loss_fn, observation.update.round, rounds, rate)


def expected_noise(surplus: Float[Tensor, "c h w"], simulated: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """The mean of each pixel's noise, given by how much the pixel surpasses its neighbourhood.

    ``E[N | d] = sum_j N_j w_j / sum_j w_j``, ``w_j = exp(-sum_c (d_c - N_jc)^2 / 2 s_c^2)``: a pixel's noise is any of
    the values that ``simulated`` has, wherever they are; without noise the surplus is Gaussian, of the robust spread
    ``s_c = median |d_c| / 0.6745``.

    Args:
        surplus: d, a pixel less its neighbourhood.
        simulated: noise with the distribution that is expected on this image, in the same unit.

    >>> spike = torch.zeros(1, 4, 4)
    >>> spike[0, 1, 2] = 0.5
    >>> torch.equal(expected_noise(spike, spike.flip(2)), spike)
    True
    """
    values = simulated.flatten(1)
    # Evenly spaced ranks: the strongest noise is on few pixels, and a random choice might miss it.
    ranks = torch.linspace(0, values.shape[1] - 1, min(MOST_VALUES, values.shape[1])).round().long()
    values = values[:, values[0].argsort()[ranks.to(values.device)]]
    spread = (surplus.abs().flatten(1).median(1).values / 0.6745).clamp_min(LEAST_SPREAD)
    distance = ((surplus.flatten(1)[:, :, None] - values[:, None]) / spread[:, None, None]).square().sum(0)
    return torch.einsum("pj,cj->cp", torch.softmax(-distance / 2, dim=1), values).view_as(surplus)


def neighbourhood(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The median of each pixel's eight neighbours, which noise on a few pixels does not move."""
    count, channels, height, width = images.shape
    around = F.unfold(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3).view(count, channels, 9, height, width)
    ordered = torch.cat([around[:, :, :4], around[:, :, 5:]], dim=2).sort(dim=2).values
    return ordered[:, :, 3:5].mean(dim=2)

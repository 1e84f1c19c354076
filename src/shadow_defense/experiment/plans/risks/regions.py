"""Risk 7: other defenses do not say which region is at risk; does Shadow's map?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    UNDEFENDED,
    Image,
    Risk,
    Trials,
    changed,
    differences,
    main_attack,
    means,
    shadow_arm,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.trial import Trial
from shadow_defense.federated.training_folder import read_explanations
from shadow_defense.metrics.psnr import squared_error_map
from shadow_defense.report.records.risks import Finding, Row
from shadow_defense.seeds import named_generator

SHADOW = "shadow"

OWN, OTHER, SHUFFLED = "the image's map", "another image's map", "the map, shuffled"

SIZES = (1,) * 16
"""Images of each client: one, so that an update is of one image and the attack comes closest."""

MARKED = 0.3
"""Share of pixels that count as marked by a map: those with the highest values."""


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    # The first round: both begin with the same model, so that the map and the attack are of the same gradient.
    each = {
        "data": {"split": {"kind": "sizes", "sizes": SIZES, "batch_sizes": SIZES}},
        "training": {"rounds": 1, "local_epochs": 1},
        "attacks": {ATTACK: main_attack(base, [1], clients=None, longest_client=None)},
    }
    undefended = changed(base, **each)
    maps = changed(base, arms={SHADOW: shadow_arm(base)}, **each)
    return {"undefended": Trial(undefended, store), "maps": MapsTrial(maps, store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    maps: dict[Image, Tensor] = {}
    errors: dict[Image, Tensor] = {}
    for trials in seeds:
        own_maps, own_errors = vulnerability_maps(trials["maps"]), attack_errors(trials["undefended"])
        maps.update({image: own_maps[image] for image in own_errors if image in own_maps})
        errors.update({image: own_errors[image] for image in own_maps if image in own_errors})
    return finding(maps, errors, seeds[0]["maps"].config.seed)


class MapsTrial(Trial):
    """Trained for the maps alone: what the attack asks for is kept, and not attacked."""

    def tasks(self) -> list[Task]:
        return list(self.trainings.values())


def vulnerability_maps(trial: Trial) -> dict[Image, Float[Tensor, "h w"]]:
    """Shadow's maps (N3) of the first round, by image: high where the shadow generator comes close."""
    folder = trial.store.place(trial.trainings[SHADOW])
    return {
        (trial.config.seed, client.name, sample): shown["noise_map"][0]
        for _, client in trial.attacked_updates(ATTACK)
        for sample, shown in read_explanations(folder, 0, client.name).items()
    }


def attack_errors(trial: Trial) -> dict[Image, Float[Tensor, "h w"]]:
    """The squared error of each pixel that the attack left on the undefended updates of the first round."""
    found = {}
    for scoring in trial.scorings:
        if scoring.arm == UNDEFENDED:
            score = scoring.load(trial.store)
            truths = trial.client(score.client).train
            originals = dict(zip(truths.sample_ids, truths.unit_images(), strict=True))
            for sample, rebuilt in scoring.rebuilt(trial.store, score).items():
                error = squared_error_map(rebuilt[None], originals[sample][None])[0]
                found[(trial.config.seed, score.client, sample)] = error
    return found


def agreement(noise_map: Float[Tensor, "h w"], error: Float[Tensor, "h w"]) -> float:
    """Spearman's rank correlation of a map with minus the error: 1 where the map orders pixels as the attack does.

    0 for a map or an error that is the same everywhere: it says nothing.

    >>> agreement(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.4, 0.3], [0.2, 0.1]]))
    1.0
    """
    from scipy.stats import spearmanr

    if noise_map.max() == noise_map.min() or error.max() == error.min():
        return 0.0
    return float(spearmanr(noise_map.flatten().numpy(), -error.flatten().numpy()).statistic)


def marked_error(noise_map: Float[Tensor, "h w"], error: Float[Tensor, "h w"]) -> float:
    """Mean error in the 30 % of pixels with the highest map, over the mean error of all: below 1 where it is right."""
    count = max(1, int(MARKED * noise_map.numel()))
    marked = noise_map.flatten().topk(count).indices
    return float(error.flatten()[marked].mean() / error.mean().clamp_min(1e-12))


def _shuffled(noise_map: Tensor, seed: int, image: Image) -> Tensor:
    order = torch.randperm(noise_map.numel(), generator=named_generator(seed, "shuffled map", *image))
    return noise_map.flatten()[order].view_as(noise_map)


def finding(maps: Mapping[Image, Tensor], errors: Mapping[Image, Tensor], seed: int) -> Finding:
    """From Shadow's map and the attack's error of each image, (h, w)."""
    images = list(maps)
    candidates = {
        OWN: dict(maps),
        OTHER: {image: maps[images[place - 1]] for place, image in enumerate(images)},
        SHUFFLED: {image: _shuffled(maps[image], seed, image) for image in images},
    }
    measured = {
        name: {
            image: {
                "rank": agreement(own[image], errors[image]),
                "marked": marked_error(own[image], errors[image]),
            }
            for image in images
        }
        for name, own in candidates.items()
    }
    shuffled, other = (differences(measured[OWN], measured[name], ("rank",))["rank"] for name in (SHUFFLED, OTHER))
    return Finding(
        value=shuffled,
        rows=tuple(Row(name, means(each, ("rank", "marked"))) for name, each in measured.items()),
        more={OTHER: other},
        facts={"marked share": MARKED},
    )


RISK = Risk(
    7,
    "Other defenses act everywhere alike and do not say which part of an image an attacker could rebuild; Shadow's "
    "vulnerability map does.",
    "Shadow's maps of one-image clients in the first round, against the error that the attack left at each pixel of "
    "the same clients' undefended updates.",
    trials,
    measure,
)

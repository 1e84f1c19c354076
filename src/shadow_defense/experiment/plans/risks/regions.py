"""Risk 7: other defenses do not say which region is at risk; does Shadow's map?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.base import ATTACK, NO_DEFENSE, UNDEFENDED, changed, main_attack, shadow_arm
from shadow_defense.experiment.plans.risks.readings import Image, differences, mean_of
from shadow_defense.experiment.plans.risks.risk import DotChart, Finding, Risk, Runs, Subrun
from shadow_defense.experiment.plans.run import STAGES
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.federated.rounds import explanation_name, round_folder, train_again
from shadow_defense.files import nest_tensors, read_json, read_tensors
from shadow_defense.metrics.psnr import squared_error_map
from shadow_defense.progress import Progress
from shadow_defense.report.kit.formatting import signed_with_interval, with_interval
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.sample_store import unpack_samples

SHADOW = "shadow"

SIZES = (1,) * 16
"""Images of each client: one, so that an update is of one image and the attack comes closest."""

MARKED = 0.3
"""Share of pixels that count as marked by a map: those with the highest values."""


def subruns(base: RunConfig, folder: Path) -> dict[str, Subrun]:
    # The first round: both begin with the same model, so that the map and the attack are of the same gradient.
    each = {
        "data": {"split": {"kind": "sizes", "sizes": SIZES, "batch_sizes": SIZES}},
        "training": {"rounds": 1, "local_epochs": 1},
        "attacks": {ATTACK: main_attack(base, [1], clients=None, longest_client=None)},
    }
    attacked = changed(base, "Risk 7: what an attack rebuilds", arms={UNDEFENDED: NO_DEFENSE}, **each)
    maps = changed(base, "Risk 7: what Shadow says is at risk", arms={SHADOW: shadow_arm(base)}, **each)
    return {"undefended": Subrun(attacked), "maps": Subrun(maps, _train)}


def _train(run: Run, progress: Progress) -> None:
    """The stages that draw the maps; nobody attacks them."""
    for stage in ("pretrain", "train"):
        STAGES[stage](run, progress)


def measure(seeds: Sequence[Runs]) -> Finding:
    maps: dict[Image, Tensor] = {}
    errors: dict[Image, Tensor] = {}
    for runs in seeds:
        own_maps, own_errors = vulnerability_maps(runs["maps"]), attack_errors(runs["undefended"])
        maps.update({image: own_maps[image] for image in own_errors if image in own_maps})
        errors.update({image: own_errors[image] for image in own_maps if image in own_errors})
    return finding(maps, errors, seeds[0]["maps"].config.seed)


def vulnerability_maps(run: Run) -> dict[Image, Float[Tensor, "h w"]]:
    """Shadow's maps (N3) of the first round, by image: high where the shadow generator comes close."""
    found = {}
    for client in run.attacked_clients(ATTACK):
        if client.name not in run.taking_part(0):
            continue
        path = round_folder(run.arm_folder(SHADOW), 0) / explanation_name(client.name)
        tensors, _ = read_tensors(path, train_again(run.arm_folder(SHADOW)))
        for sample, noise_map in unpack_samples(nest_tensors(tensors)["noise_map"]).items():
            found[(run.config.seed, client.name, sample)] = noise_map[0]
    return found


def attack_errors(run: Run) -> dict[Image, Float[Tensor, "h w"]]:
    """The squared error of each pixel that the attack left on the undefended updates of the first round."""
    found = {}
    for score in read_json(run.folder / "scores.json", f"delete {run.results_path} and give the same command again"):
        if score["arm"] == UNDEFENDED:
            job = Job(UNDEFENDED, ATTACK, score["round"], score["client"])
            images = Reconstruction.load(run.reconstruction_path(job)).images
            truths = run.client(score["client"]).train
            units = truths.unit_images()
            for row in score["rows"]:
                if row["sample_id"] is not None:
                    truth = units[truths.sample_ids.index(row["sample_id"])]
                    error = squared_error_map(images[row["reconstruction"]][None], truth[None])[0]
                    found[(run.config.seed, score["client"], row["sample_id"])] = error
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
        "the image's map": dict(maps),
        "another image's map": {image: maps[images[place - 1]] for place, image in enumerate(images)},
        "the map, shuffled": {image: _shuffled(maps[image], seed, image) for image in images},
    }
    ranks = {
        name: {image: agreement(own[image], errors[image]) for image in images} for name, own in candidates.items()
    }
    marked = {
        name: {image: marked_error(own[image], errors[image]) for image in images} for name, own in candidates.items()
    }
    own, other, shuffled = candidates
    value = mean_of(differences(ranks[own], ranks[shuffled]))
    beyond = mean_of(differences(ranks[own], ranks[other]))
    measured, share = mean_of(ranks[own]), mean_of(marked[own])
    sentence = (
        f"The rank correlation between Shadow's map and how well the attack rebuilt each pixel is "
        f"{with_interval(measured.mean, measured.interval, 2)}, where 1 would be the same order and 0 none: "
        f"{signed_with_interval(value.mean, value.interval, 2)} against a shuffled map and "
        f"{signed_with_interval(beyond.mean, beyond.interval, 2)} against another image's map. In the "
        f"{MARKED:.0%} of pixels that the map marks, the attack's squared error is {share.mean:.2f} times the mean."
    )
    rows = []
    for name in candidates:
        found, part = mean_of(ranks[name]), mean_of(marked[name])
        rows.append(
            (
                name,
                with_interval(found.mean, found.interval, 3),
                with_interval(part.mean, part.interval, 2),
                str(found.count),
            )
        )
    return Finding(
        sentence,
        "rank correlation of Shadow's map with minus the attack's error, less that of the shuffled map",
        value,
        "images",
        (
            DotChart(
                "Rank correlation with what the attack rebuilt",
                {name: mean_of(values) for name, values in ranks.items()},
                ("no relation", 0.0),
            ),
        ),
        ("Map", "Rank correlation", "Error where it marks, over the mean", "Images"),
        tuple(rows),
        digits=3,
        notes=(
            "No other defense here draws such a map: that part of the claim holds by construction. Measured is whether "
            "Shadow's map is right about a real attack on the undefended update.",
            "Another image's map tells what a map owes to the kind of image (dark borders, bright lungs) and not to "
            "this image.",
        ),
    )


RISK = Risk(
    7,
    "regions at risk",
    "Other defenses act everywhere alike and do not say which part of an image an attacker could rebuild; Shadow's "
    "vulnerability map does.",
    "Shadow's maps of one-image clients in the first round, against the error that the attack left at each pixel of "
    "the same clients' undefended updates.",
    subruns,
    measure,
)

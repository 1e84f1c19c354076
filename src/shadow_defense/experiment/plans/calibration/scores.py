"""How much each image leaked in a calibration's runs, and what an attacker reaches without looking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from shadow_defense.experiment.plans.calibration.bisection import worst_round
from shadow_defense.experiment.scene import Scene
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.limit import TARGET_RANGES
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.report.records.calibration import Leakage

Scores = Mapping[str, float]
"""Of one image, by metric."""


def mean_image_scores(scene: Scene, attack: str) -> dict[str, Scores]:
    """How close the mean of the public images comes to each attacked image: ``psnr`` and ``ssim``."""
    scores: dict[str, Scores] = {}
    for client in scene.attacked_clients(attack):
        truths = client.train.unit_images()
        blank = scene.mean_image.expand_as(truths)
        measured = zip(client.train.sample_ids, psnr(blank, truths).tolist(), ssim(blank, truths).tolist(), strict=True)
        scores.update({image: {"psnr": decibels, "ssim": similarity} for image, decibels, similarity in measured})
    return scores


def leaked(images: Mapping[str, Scores], prior: Mapping[str, Scores]) -> dict[str, Scores]:
    """The images' scores with their ``rdlv`` beside them, where it is defined."""
    similar = torch.tensor([scores["ssim"] for scores in images.values()])
    before = torch.tensor([prior[image]["ssim"] for image in images])
    relative = dict(zip(images, relative_data_leakage(similar, before).tolist(), strict=True))
    return {
        image: {**scores, **({} if math.isnan(relative[image]) else {"rdlv": relative[image]})}
        for image, scores in images.items()
    }


def leakage_of(values: Mapping[int, Sequence[Mapping[str, Scores]]]) -> dict[str, Leakage]:
    """By metric, from ``values[round]``, a list of ``{image: scores}``; without RDLV where too few images have one."""
    found = {}
    for metric in TARGET_RANGES:
        rounds: dict[int, dict[str, list[float]]] = {}
        for round, parts in values.items():
            images = rounds.setdefault(round, {})
            for part in parts:
                for image, scores in part.items():
                    if metric in scores:
                        images.setdefault(image, []).append(scores[metric])
        if metric != "rdlv" or all(len(images) > 1 for images in rounds.values()):
            found[metric] = worst_round(rounds)
    return found

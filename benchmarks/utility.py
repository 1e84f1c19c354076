"""What a model is worth that was trained on protected images, beside what the best linear remover makes of them.

    python benchmarks/utility.py --data pneumoniamnist.npz --seeds 0 1
    python benchmarks/utility.py --data retinamnist.npz --private 540 --public 540 --only "clean,task 8 at"

Each row: images are protected, written as bytes, a model is trained on them from scratch and tested on clean images,
through the map that goes with the texture where it has one. Beside it PSNR of the linear removal and rank-1 among all
private images by likelihood, both of the first 300. The tables of docs/protect.md come from here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from protecting.material import SEED, Material, add_arguments, read_material, wanted

from shadow_defense.attacks.removers.linking import likelihoods
from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.images import as_bytes
from shadow_defense.experiment.protecting.utility import SMALL, worth_of
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.metrics.linkage import hits
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.settings import ModelSettings
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, PoolDecoys
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White


@dataclass(frozen=True)
class Row:
    """A texture, or other training images in its place.

    Attributes:
        removal: whether the linear removal is trained on, with the map that goes with it before the test images.
        labelled: public images of which somebody knows the labels; None: all, 0: none.
    """

    texture: Callable[[Material], Texture] | None = None
    removal: bool = True
    train: Callable[[Material], ImageSet] | None = None
    labelled: int | None = 0


def task(count: int, strength: float, labelled: int | None = None) -> Row:
    return Row(lambda given: Task(given.whitening, given.spared(count, labelled), strength), labelled=labelled)


def alone(labelled: int | None) -> Row:
    return Row(train=lambda given: given.public.subset(range(len(given.public))[:labelled]), labelled=labelled)


MODELS = {
    "convnet": SMALL,
    "resnet18": ModelSettings(name="resnet18", normalisation="group", stem="imagenet"),
}

ROWS: dict[str, Row] = {
    "clean": Row(train=lambda given: given.private),
    "public images alone": alone(None),
    "300 public images alone": alone(300),
    **{
        f"task {count} at {strength}": task(count, strength)
        for count, strength in ((8, 1.25), (8, 1.5), (4, 1.0), (8, 1.0), (8, 2.0), (16, 2.5))
    },
    "principal 8 at 1.5": Row(lambda given: Task(given.whitening, given.principal(8), 1.5)),
    "task 8 of 300 labels at 1.5": task(8, 1.5, 300),
    "random 8 at 1.5": Row(lambda given: Task(given.whitening, given.random(8), 1.5)),
    "white 1.0 removed": Row(lambda given: White(given.whitening, 1.0)),
    "white 1.0": Row(lambda given: White(given.whitening, 1.0), removal=False),
    "covariance 2.0 removed": Row(lambda given: Covariance(given.whitening, 2.0)),
    "decoy 70 % public with floor 0.15": Row(
        lambda given: Decoy(given.whitening, PoolDecoys(given.pool), 0.7, 0.15), removal=False
    ),
}


def written(texture: Texture, removal: bool, material: Material) -> Parts:
    """The data set as it is written: bytes, the test part as what is kept of it where the removal is trained on."""
    protected = texture.protect(material.gallery, drawn(SEED + 1, "private", len(material.gallery)))
    parts = {"train": material.private, "validation": material.validation, "test": material.test}
    images = {"train": protected}
    if removal:
        linear = linear_removal(texture.whitening, [texture.view()])
        images["train"] = linear.images([protected])
        for name in ("validation", "test"):
            images[name] = texture.kept(parts[name].unit_images())
    sets = {
        name: replace(each, images=as_bytes(images[name])) if name in images else each for name, each in parts.items()
    }
    return Parts(sets["train"], sets["validation"], sets["test"], tuple(map(str, range(material.classes))))


def leaked(texture: Texture, material: Material, audited: int) -> dict[str, list[float]]:
    """PSNR of the linear removal of each audited image, and whether it is found first among all."""
    truths = material.gallery[:audited]
    protected = texture.protect(truths, drawn(SEED + 1, "private", audited))
    estimates = linear_removal(texture.whitening, [texture.view()]).images([protected])
    similarity = likelihoods(texture.whitening, texture.view(), protected, material.gallery)
    return {
        "psnr": psnr(estimates, truths).tolist(),
        "rank1": hits(similarity, torch.arange(audited)).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings of each row")
    parser.add_argument("--model", choices=MODELS, default="convnet")
    given = parser.parse_args()
    material = read_material(given.data, given.size, given.private, given.public, given.gan_steps)
    rows = {}
    for name, row in ROWS.items():
        if not wanted(name, given.only):
            continue
        begun = time.monotonic()
        found: dict[str, list[float]] = {}
        if row.texture is None:
            assert row.train is not None
            train = row.train(material)
            parts = Parts(train, material.validation, material.test, tuple(map(str, range(material.classes))))
        else:
            texture = row.texture(material)
            parts = written(texture, row.removal, material)
            found = leaked(texture, material, given.audited)
        worths = [worth_of(parts, seed=seed, settings=MODELS[given.model]) for seed in given.seeds]
        found |= {key: [each[key] for each in worths if each[key] is not None] for key in ("f1", "f1_threshold", "auc")}
        means = {key: mean_interval(values) for key, values in found.items() if values}
        text = ", ".join(
            f"{key} {each.mean:.3f}" + ("" if each.interval is None else f" ± {each.mean - each.interval[0]:.3f}")
            for key, each in means.items()
        )
        labels = "all" if row.labelled is None else row.labelled
        print(f"{name}: {text}; public labels: {labels}; {time.monotonic() - begun:.0f} s", flush=True)
        rows[name] = {key: each.as_record() | {"values": found[key]} for key, each in means.items()}
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

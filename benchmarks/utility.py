"""What a model is worth that was trained on protected images, beside what the best linear remover makes of them.

    python benchmarks/utility.py --data pneumoniamnist.npz --seeds 0 1 --json rows.json
    python benchmarks/utility.py --data retinamnist.npz --private 540 --public 540 --only "clean,recommended"
    python benchmarks/utility.py --data pneumoniamnist.npz --clients --model resnet18 --only "clean,recommended"

Each row: images are protected, written as bytes, a model is trained on them from scratch and tested on clean images,
through the map that goes with the texture where it has one. Beside it PSNR of the linear removal above that of the mean
image, and rank-1 among all private images by likelihood, both of the first 300. A seed deals the images, tells the
directions, draws the noise and trains: numbers are means over seeds with their intervals. What --json holds already is
not measured again. The tables of docs/protect.md come from here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from protecting.federation import worth_in_a_federation
from protecting.material import Material, add_arguments, read_material, wanted
from protecting.placements import PLACEMENTS
from safetensors.torch import save_file
from torch import Tensor

from shadow_defense.attacks.removers.linking import compared
from shadow_defense.attacks.removers.lmmse import linear_removal
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.data.dataset import ImageSet, Parts, measure_normalisation
from shadow_defense.data.images import as_bytes
from shadow_defense.experiment.protecting.utility import SMALL, Worth, worth_of, worth_of_model
from shadow_defense.files import read_json, write_json
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.metrics.linkage import hits
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.settings import ModelSettings
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, PoolDecoys
from shadow_defense.protection.directions import EPOCHS, train_classifier
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White

LONGER, SHORTER = 3 * EPOCHS, EPOCHS // 3

SECOND_LOOK = 2**0.5
"""By which each of two looks is stronger than one alone, whose information is then that of both."""


@dataclass(frozen=True)
class Row:
    """The textures of all looks that leave, of which the last is trained on; or other training images in their place.

    Attributes:
        removal: whether the linear removal is trained on, with the map that goes with it before the test images.
        labelled: public images of which somebody knows the labels; None: all, 0: none.
        epochs: of the training, of one hospital.
        public_start: begin with weights that were trained on the public images.
        by_class: ``looks`` are one look, a texture for the images of each class.
        reader: the network that reads features is tested itself, and nothing is trained.
    """

    looks: Callable[[Material], Sequence[Texture]] | None = None
    removal: bool = True
    train: Callable[[Material], ImageSet] | None = None
    labelled: int | None = 0
    epochs: int = EPOCHS
    public_start: bool = False
    by_class: bool = False
    reader: bool = False


def of_one(make: Callable[[Material], Texture], *, removal: bool = True, labelled: int | None = 0) -> Row:
    return Row(lambda given: [make(given)], removal=removal, labelled=labelled)


def spared(given: Material, directions: Tensor, strength: float | None, stronger: float = 1.0) -> Task:
    """At a strength, or at the weakest that keeps the promises of `recommended`."""
    make = partial(Task, given.whitening, directions)
    return make(stronger * (given.weakest(make) if strength is None else strength))


def task(count: int, strength: float | None = None, labelled: int | None = None) -> Row:
    return of_one(lambda given: spared(given, given.spared(count, labelled), strength), labelled=labelled)


def features(count: int, labelled: int | None = None) -> Row:
    return of_one(lambda given: given.read(count, labelled), labelled=labelled)


def started(row: Row) -> Row:
    return replace(row, public_start=True, labelled=None)


def alone(labelled: int | None) -> Row:
    return Row(train=lambda given: given.public.subset(range(len(given.public))[:labelled]), labelled=labelled)


def two_phases(given: Material) -> list[Texture]:
    """Nobody's labels: principal directions first; then those of the model that was trained on what they left."""
    first = spared(given, given.principal(4), None, SECOND_LOOK)
    train = written(first, True, given).train
    normalisation = measure_normalisation(train)
    model = train_classifier(train.unit_images(), train.labels, normalisation, seed=given.seed, settings=SMALL)
    return [first, spared(given, given.directions_of(model, normalisation, 4), None, SECOND_LOOK)]


def decoys(of_class: bool) -> Row:
    """Public images as decoys, under the least floor that keeps the promises of `recommended` where any is taken."""

    def made(given: Material) -> list[Texture]:
        def make(floor: float, pool: Tensor = given.pool) -> Decoy:
            return Decoy(given.whitening, PoolDecoys(pool), 0.7, floor)

        floor = given.weakest(make)
        if not of_class:
            return [make(floor)]
        return [make(floor, given.pool[given.public.labels == label]) for label in range(given.classes)]

    return Row(made, removal=False, labelled=None if of_class else 0, by_class=of_class)


MODELS = {
    "convnet": SMALL,
    "resnet18": ModelSettings(name="resnet18", normalisation="group", stem="imagenet"),
}

ROWS: dict[str, Row] = {
    "clean": Row(train=lambda given: given.private),
    "public images alone": alone(None),
    "300 public images alone": alone(300),
    "recommended": features(4),
    "the network that reads, alone": Row(labelled=None, reader=True),
    "labels of 100: the network that reads, alone": Row(labelled=100, reader=True),
    **{f"{count} directions": task(count) for count in (1, 2, 4, 8, 16)},
    "directions of 300 labels": task(4, labelled=300),
    "features of 300 labels": features(4, labelled=300),
    **{f"{count} features": features(count) for count in (1, 2, 8, 16)},
    **{f"labels of 100: {name}": row for name, row in (("alone", alone(100)), ("directions", task(4, labelled=100)))},
    **{f"labels of 100: {count} features": features(count, 100) for count in (1, 4, 16)},
    "directions of a first phase": Row(two_phases),
    "principal directions": of_one(lambda given: spared(given, given.principal(4), None)),
    "random directions": of_one(lambda given: spared(given, given.random(4), None)),
    **{f"task {count} at {strength}": task(count, strength) for count, strength in ((8, 1.25), (8, 1.5), (4, 1.0))},
    **{name: of_one(make) for name, make in PLACEMENTS.items()},
    "longer: clean": Row(train=lambda given: given.private, epochs=LONGER),
    "longer: 4 directions": replace(task(4), epochs=LONGER),
    "shorter: clean": Row(train=lambda given: given.private, epochs=SHORTER),
    "shorter: 4 directions": replace(task(4), epochs=SHORTER),
    "shorter: 8 directions": replace(task(8), epochs=SHORTER),
    "shorter: recommended": replace(features(4), epochs=SHORTER),
    "public start: clean": started(Row(train=lambda given: given.private)),
    "public start: 4 directions": started(task(4)),
    "white 1.0 removed": of_one(lambda given: White(given.whitening, 1.0)),
    "white 1.0": of_one(lambda given: White(given.whitening, 1.0), removal=False),
    "covariance 2.0 removed": of_one(lambda given: Covariance(given.whitening, 2.0)),
    "decoys of any class": decoys(False),
    "decoys of the image's class": decoys(True),
    "decoy 70 % public with floor 0.15": of_one(
        lambda given: Decoy(given.whitening, PoolDecoys(given.pool), 0.7, 0.15), removal=False
    ),
}


def protected(texture: Texture, images: Tensor, seed: int, look: str) -> Tensor:
    return texture.protect(images, drawn(seed + 1, look, len(images)))


def written(texture: Texture, removal: bool, material: Material, look: str = "private") -> Parts:
    """The data set as it is written: bytes, the test part as what is kept of it where the removal is trained on."""
    parts = {"train": material.private, "validation": material.validation, "test": material.test}
    images = {"train": protected(texture, material.gallery, material.seed, look)}
    if removal:
        if texture.maps:
            images["train"] = texture.mapped(images["train"])
        else:
            images["train"] = linear_removal(texture.whitening, [texture.view()]).images([images["train"]])
        for name in ("validation", "test"):
            images[name] = texture.kept(parts[name].unit_images())
    sets = {
        name: replace(each, images=as_bytes(images[name])) if name in images else each for name, each in parts.items()
    }
    return Parts(sets["train"], sets["validation"], sets["test"], names_of(material))


def of_each_class(
    textures: Sequence[Texture], removal: bool, material: Material, audited: int
) -> tuple[Parts, dict[str, float]]:
    """The data set as it is written, and what is left of it to who knows the labels, as every server does."""
    images, found, labels = material.private.images.clone(), dict[str, float](), material.private.labels
    for label, texture in enumerate(textures):
        own = (labels == label).nonzero()[:, 0]
        some = replace(material, private=material.private.subset(own.numpy()))
        images[own] = written(texture, removal, some, f"private, class {label}").train.images
        attacked = int((labels[:audited] == label).sum())
        for name, value in leaked([texture], some, attacked).items():
            found[name] = found.get(name, 0.0) + value * attacked / min(audited, len(labels))
    train = replace(material.private, images=images)
    return Parts(train, material.validation, material.test, names_of(material)), found


def names_of(material: Material) -> tuple[str, ...]:
    return tuple(map(str, range(material.classes)))


def name_of_look(number: int) -> str:
    return "private" if number == 0 else f"private, look {number}"


def leaked(textures: Sequence[Texture], material: Material, audited: int) -> dict[str, float]:
    """Means over the audited images, of all looks together: dB above the mean image, and whether they are found."""
    truths, whitening = material.gallery[:audited], material.whitening
    looks = [protected(each, truths, material.seed, name_of_look(number)) for number, each in enumerate(textures)]
    estimates = linear_removal(whitening, [each.view() for each in textures]).images(looks)
    seen, expected = compared(whitening, list(zip(textures, looks, strict=True)), material.gallery)
    above = psnr(estimates, truths) - psnr(material.mean_image.expand_as(truths), truths)
    return {
        "above_mean": float(above.mean()),
        "rank1": float(hits(-torch.cdist(seen, expected), torch.arange(len(truths))).mean()),
    }


def public_weights(material: Material, folder: str) -> Path:
    """A file of the small model's weights, trained on the public images."""
    public = material.public
    normalisation = measure_normalisation(public)
    model = train_classifier(public.unit_images(), public.labels, normalisation, seed=material.seed, settings=SMALL)
    path = Path(folder) / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


def measured(row: Row, material: Material, worth: Callable[..., Worth], audited: int) -> dict[str, float]:
    """One row of one seed."""
    if row.reader:
        found = material.classifier(row.labelled, moved=True)
        parts = Parts(material.public, material.validation, material.test, names_of(material))
        return numbers_of(worth_of_model(found.model, found.normalisation, parts))
    if row.looks is None:
        assert row.train is not None
        parts, found = Parts(row.train(material), material.validation, material.test, names_of(material)), {}
    elif row.by_class:
        parts, found = of_each_class(row.looks(material), row.removal, material, audited)
    else:
        textures = row.looks(material)
        last = textures[-1]
        parts = written(last, row.removal, material, name_of_look(len(textures) - 1))
        found = leaked(textures, material, audited)
        if isinstance(last, Task):
            found["strength"] = last.strength
    if row.epochs != EPOCHS:
        worth = partial(worth, epochs=row.epochs)
    with tempfile.TemporaryDirectory() as folder:
        if row.public_start:
            worth = partial(worth, settings=SMALL.model_copy(update={"start": public_weights(material, folder)}))
        scores = worth(parts)
    return found | numbers_of(scores)


def numbers_of(scores: Worth) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--model", choices=MODELS, default="convnet")
    parser.add_argument("--clients", action="store_true", help="train in a federation of the paper's nine clients")
    given = parser.parse_args()
    chosen = {name: row for name, row in ROWS.items() if wanted(name, given.only)}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    if given.json and given.json.exists():
        rows = read_json(given.json)
    for seed in given.seeds:
        material = read_material(given.data, given.size, given.private, given.public, given.gan_steps, seed)
        train = worth_in_a_federation if given.clients else worth_of
        worth = partial(train, seed=seed, settings=MODELS[given.model])
        for name, row in chosen.items():
            if str(seed) in rows.setdefault(name, {}):
                continue
            begun = time.monotonic()
            found = rows[name][str(seed)] = measured(row, material, worth, given.audited)
            text = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
            print(f"seed {seed}, {name}: {text}; {time.monotonic() - begun:.0f} s", flush=True)
            if given.json:
                write_json(given.json, rows)
    for name, row in chosen.items():
        each = list(rows[name].values())
        means = {key: mean_interval([one[key] for one in each]) for key in each[0]}
        text = ", ".join(
            f"{key} {mean.mean:.3f}" + ("" if mean.interval is None else f" ± {mean.mean - mean.interval[0]:.3f}")
            for key, mean in means.items()
        )
        print(f"{name}, {len(each)} seeds: {text}; public labels: {'all' if row.labelled is None else row.labelled}")


if __name__ == "__main__":
    main()

"""What the best remover makes of images protected once, and whether it finds them again.

    python benchmarks/protect.py --data pneumoniamnist.npz
    python benchmarks/protect.py --data pneumoniamnist.npz --steps 700 --only white --json rows.json

Images are resized to 32 px; private and public ones are drawn from the training part without overlap. The table of
docs/protect.md comes from here. Without --steps no remover is trained: the linear ones and those of decoys run alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.suite import Knowledge, planted_breaks, removers_for
from shadow_defense.attacks.removers.worst_case import attack, in_hindsight, linkage, scores
from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.data.npz import read_npz
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.generators.training import GanTraining
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys, PoolDecoys
from shadow_defense.protection.directions import task_directions, train_classifier
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import Whitening, measure_whitening
from shadow_defense.seeds import named_generator

SEED = 0


@dataclass
class Public:
    """What textures are made of, each part when it is first asked for."""

    images: Tensor
    bytes: Tensor
    labels: Tensor
    gan_steps: int
    _spared: Tensor | None = None
    _decoys: GeneratedDecoys | None = None

    def spared(self, whitening: Whitening, count: int) -> Tensor:
        if self._spared is None:
            normalisation = Normalisation((float(self.images.mean()),), (float(self.images.std()),))
            model = train_classifier(self.images, self.labels, normalisation, seed=SEED)
            self._spared = task_directions(
                model, self.images, self.labels, normalisation, whitening, count=32, seed=SEED
            )
        return self._spared[:, :count]

    def decoys(self) -> GeneratedDecoys:
        if self._decoys is None:
            settings = GeneratorSettings(name="dcgan", steps=self.gan_steps, width=16, z_dim=64)
            training = GanTraining(settings, image_size=32, channels=1, seed=SEED)
            for _ in range(self.gan_steps):
                training.step(self.bytes)
            self._decoys = GeneratedDecoys(training.average)
        return self._decoys


Make = Callable[[Whitening, Public], Texture]

ROWS: dict[str, Make] = {
    "white 0.5": lambda whitening, public: White(whitening, 0.5),
    "white 1.0": lambda whitening, public: White(whitening, 1.0),
    "covariance 1.0": lambda whitening, public: Covariance(whitening, 1.0),
    "decoy 70 % public, no floor": lambda whitening, public: Decoy(whitening, PoolDecoys(public.images), 0.7, 0.0),
    "decoy 70 % public, floor 0.15": lambda whitening, public: Decoy(whitening, PoolDecoys(public.images), 0.7, 0.15),
    "task 8 directions, 1.0": lambda whitening, public: Task(whitening, public.spared(whitening, 8), 1.0),
    "task 8 directions, 2.0": lambda whitening, public: Task(whitening, public.spared(whitening, 8), 2.0),
    "task 16 directions, 1.5": lambda whitening, public: Task(whitening, public.spared(whitening, 16), 1.5),
    "task 32 directions, 1.0": lambda whitening, public: Task(whitening, public.spared(whitening, 32), 1.0),
    "decoy 70 % generated, no floor": lambda whitening, public: Decoy(whitening, public.decoys(), 0.7, 0.0),
    "decoy 70 % generated, floor 0.15": lambda whitening, public: Decoy(whitening, public.decoys(), 0.7, 0.15),
}


def measure(
    texture: Texture, knowledge: Knowledge, gallery: Tensor, labels: Tensor, audited: int, steps: int
) -> dict[str, object]:
    """One row: planted breaks, and the scores of every remover, of the one believed and of the best in hindsight."""
    truths, own = gallery[:audited], torch.arange(audited)
    protected = texture.protect(truths, drawn(SEED + 1, "private", audited))
    removers = removers_for(texture, knowledge, seed=SEED, steps=steps)
    planted = planted_breaks(texture, removers, knowledge, seed=SEED, steps=steps)
    found = attack(texture, removers, knowledge, protected, labels[:audited], seed=SEED)
    mean = texture.whitening.mean.unflatten(0, texture.whitening.shape)
    by_remover = {name: scores(each.estimates, truths, mean) for name, each in found.removals.items()}
    tables = {
        "x' itself": scores(protected.clamp(0, 1), truths, mean),
        **by_remover,
        "worst": scores(found.estimates, truths, mean),
        "in hindsight": in_hindsight(list(by_remover.values())),
        "linkage": linkage(texture, protected, found.estimates, gallery, own, None),
    }
    pixels = -torch.cdist(found.estimates.flatten(1), gallery.flatten(1))
    first = (pixels.argmax(dim=1) == own).float()
    tables["linkage"]["rank1_by_removal"] = first
    return {
        "planted_breaks": planted,
        **{
            table: {metric: mean_interval(values.tolist()).as_record() for metric, values in each.items()}
            for table, each in tables.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an npz file of MedMNIST")
    parser.add_argument("--private", type=int, default=1800, help="images in the gallery")
    parser.add_argument("--public", type=int, default=1800)
    parser.add_argument("--audited", type=int, default=300, help="of the private images")
    parser.add_argument("--steps", type=int, default=0, help="of the learned remover's training")
    parser.add_argument("--gan-steps", type=int, default=1000, help="of the generator of decoys")
    parser.add_argument("--only", default="", help="rows whose name begins so")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    given = parser.parse_args()
    train: ImageSet = read_npz(path=given.data, image_size=32, channels=1).train
    order = torch.randperm(len(train), generator=named_generator(SEED, "benchmark")).numpy()
    private, aside = train.subset(order[: given.private]), train.subset(order[given.private :][: given.public])
    public = Public(aside.unit_images(), aside.images, aside.labels, given.gan_steps)
    whitening = measure_whitening(public.images)
    knowledge = Knowledge(public.images, public.labels, int(train.labels.max()) + 1)
    gallery = private.unit_images()
    mean = scores(
        whitening.mean.unflatten(0, whitening.shape).expand_as(gallery[: given.audited]),
        gallery[: given.audited],
        whitening.mean.unflatten(0, whitening.shape),
    )
    print(f"{len(private)} private images, {len(aside)} public, {given.audited} audited; {whitening.count} directions")
    print(f"mean image: {float(mean['psnr'].mean()):.2f} dB, SSIM {float(mean['ssim'].mean()):.3f}")
    rows = {}
    for name, make in ROWS.items():
        if not name.startswith(given.only):
            continue
        begun = time.monotonic()
        texture = make(whitening, public)
        row = rows[name] = measure(texture, knowledge, gallery, private.labels, given.audited, given.steps)
        print(f"{name}: {time.monotonic() - begun:.0f} s; planted breaks {row.pop('planted_breaks')}")
        for table, numbers in row.items():
            text = ", ".join(
                f"{metric} {value['mean']:.3f}"
                + ("" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})")
                for metric, value in numbers.items()
            )
            print(f"  {table}: {text}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

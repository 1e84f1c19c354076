"""What the best remover makes of images protected once, and whether it finds them again.

    python benchmarks/protect.py --data pneumoniamnist.npz
    python benchmarks/protect.py --data pneumoniamnist.npz --steps 700 --only white --json rows.json
    python benchmarks/protect.py --data pneumoniamnist.npz --steps 700 --only pixels

Private and public images are drawn from the training part without overlap. The tables of docs/protect.md come from
here. Without --steps no remover is trained: the linear ones and those of decoys run alone, and rows of pixels show x'
itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from protecting.material import SEED, Material, add_arguments, read_material, wanted
from protecting.pixels import Pixels
from torch import Tensor

from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.suite import planted_breaks, removers_for
from shadow_defense.attacks.removers.worst_case import attack, in_hindsight, linkage, scores
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.protection.covariance import Covariance
from shadow_defense.protection.decoy import Decoy, PoolDecoys
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.white import White

Make = Callable[[Material], Texture]

ROWS: dict[str, Make] = {
    "white 0.5": lambda given: White(given.whitening, 0.5),
    "white 1.0": lambda given: White(given.whitening, 1.0),
    "covariance 1.0": lambda given: Covariance(given.whitening, 1.0),
    "decoy 70 % public without floor": lambda given: Decoy(given.whitening, PoolDecoys(given.pool), 0.7, 0.0),
    "decoy 70 % public with floor 0.15": lambda given: Decoy(given.whitening, PoolDecoys(given.pool), 0.7, 0.15),
    "recommended": lambda given: given.read(4),
    "4 directions": lambda given: directions(given, 4),
    "task 8 at 1.0": lambda given: Task(given.whitening, given.spared(8), 1.0),
    "task 8 at 1.5": lambda given: Task(given.whitening, given.spared(8), 1.5),
    "task 8 at 2.0": lambda given: Task(given.whitening, given.spared(8), 2.0),
    "task 16 at 1.5": lambda given: Task(given.whitening, given.spared(16), 1.5),
    "task 32 at 1.0": lambda given: Task(given.whitening, given.spared(32), 1.0),
    "decoy 70 % generated without floor": lambda given: Decoy(given.whitening, given.decoys, 0.7, 0.0),
    "decoy 70 % generated with floor 0.15": lambda given: Decoy(given.whitening, given.decoys, 0.7, 0.15),
}


def directions(material: Material, count: int) -> Task:
    """At the weakest strength that keeps the promises of `recommended`."""
    make = partial(Task, material.whitening, material.spared(count))
    return make(material.weakest(make))


PIXELS = {
    **{f"pixels {strength}": (strength, False) for strength in (0.19, 0.52, 1.0)},
    "pixels 1.0, uniform noise of their energy": (1.0, True),
}
"""Strengths of the published noise: of its first and last round, and five times the first."""


def measured(make: Make, material: Material, audited: int, steps: int) -> dict[str, Any]:
    """One row: planted breaks, and the scores of every remover, of the one believed and of the best in hindsight."""
    texture = make(material)
    truths, own = material.gallery[:audited], torch.arange(audited)
    protected = texture.protect(truths, drawn(SEED + 1, "private", audited))
    removers = removers_for(texture, material.knowledge, seed=SEED, steps=steps)
    planted = planted_breaks(texture, material.knowledge, seed=SEED, steps=steps)
    found = attack(texture, removers, material.knowledge, protected, material.private.labels[:audited], seed=SEED)
    mean = material.mean_image
    by_remover = {name: scores(each.estimates, truths, mean) for name, each in found.removals.items()}
    tables = {
        "x' itself": scores(protected.clamp(0, 1), truths, mean),
        **by_remover,
        "worst": scores(found.estimates, truths, mean),
        "in hindsight": in_hindsight(list(by_remover.values())),
        "linkage": linkage(texture, protected, found.estimates, material.gallery, own, None),
    }
    tables["linkage"]["rank1_by_removal"] = found_by_distance(found.estimates, material)
    return {"planted_breaks": planted, **recorded(tables)}


def measure_pixels(pixels: Pixels, strength: float, uniform: bool, steps: int) -> dict[str, Any]:
    """A row of the published noise; the planted break of its remover is sparse noise."""
    material, audited = pixels.material, pixels.audited
    truths, mean = material.gallery[:audited], material.mean_image
    protected, public = pixels.protected(strength, uniform)
    tables = {"x' itself": scores(protected.clamp(0, 1), truths, mean)}
    if steps:
        removed = pixels.removed(protected, public, material.private.labels[:audited], steps)
        tables |= {
            "learned": scores(removed, truths, mean),
            "linkage": {"rank1_by_removal": found_by_distance(removed, material)},
        }
    return {"planted_breaks": {"sparse noise": pixels.broken(steps)} if steps else {}, **recorded(tables)}


def found_by_distance(estimates: Tensor, material: Material) -> Tensor:
    """Whether each estimate is nearer to its own image than to any other of the gallery."""
    distances = torch.cdist(estimates.flatten(1), material.gallery.flatten(1))
    return (distances.argmin(dim=1) == torch.arange(len(estimates))).float()


def recorded(tables: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Means with intervals."""
    return {
        table: {metric: mean_interval(values.tolist()).as_record() for metric, values in each.items()}
        for table, each in tables.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=0, help="of the learned remover's training")
    given = parser.parse_args()
    material = read_material(given.data, given.size, given.private, given.public, given.gan_steps)
    truths = material.gallery[: given.audited]
    mean = material.mean_image
    anybody = scores(mean.expand_as(truths), truths, mean)
    print(
        f"{len(material.private)} private images, {len(material.public)} public, {len(truths)} audited; "
        f"{material.whitening.count} directions"
    )
    print(f"mean image: {float(anybody['psnr'].mean()):.2f} dB, SSIM {float(anybody['ssim'].mean()):.3f}")
    pixels = Pixels(material, given.audited)
    measures = {name: partial(measured, make, material, given.audited, given.steps) for name, make in ROWS.items()}
    measures |= {name: partial(measure_pixels, pixels, *row, given.steps) for name, row in PIXELS.items()}
    rows = {}
    for name, measure_row in measures.items():
        if not wanted(name, given.only):
            continue
        begun = time.monotonic()
        row = rows[name] = measure_row()
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

"""What the best remover makes of images protected once, and whether it finds them again.

    python benchmarks/protect.py --data pneumoniamnist.npz
    python benchmarks/protect.py --data pneumoniamnist.npz --steps 700 --only white --json rows.json

Private and public images are drawn from the training part without overlap. The table of docs/protect.md comes from
here. Without --steps no remover is trained: the linear ones and those of decoys run alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from protecting.material import SEED, Material, add_arguments, read_material, wanted

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
    "task 8 at 1.0": lambda given: Task(given.whitening, given.spared(8), 1.0),
    "task 8 at 1.5": lambda given: Task(given.whitening, given.spared(8), 1.5),
    "task 8 at 2.0": lambda given: Task(given.whitening, given.spared(8), 2.0),
    "task 16 at 1.5": lambda given: Task(given.whitening, given.spared(16), 1.5),
    "task 32 at 1.0": lambda given: Task(given.whitening, given.spared(32), 1.0),
    "decoy 70 % generated without floor": lambda given: Decoy(given.whitening, given.decoys, 0.7, 0.0),
    "decoy 70 % generated with floor 0.15": lambda given: Decoy(given.whitening, given.decoys, 0.7, 0.15),
}


def measure(texture: Texture, material: Material, audited: int, steps: int) -> dict[str, object]:
    """One row: planted breaks, and the scores of every remover, of the one believed and of the best in hindsight."""
    truths, own = material.gallery[:audited], torch.arange(audited)
    protected = texture.protect(truths, drawn(SEED + 1, "private", audited))
    removers = removers_for(texture, material.knowledge, seed=SEED, steps=steps)
    planted = planted_breaks(texture, removers, material.knowledge, seed=SEED, steps=steps)
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
    pixels = -torch.cdist(found.estimates.flatten(1), material.gallery.flatten(1))
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
    rows = {}
    for name, make in ROWS.items():
        if not wanted(name, given.only):
            continue
        begun = time.monotonic()
        row = rows[name] = measure(make(material), material, given.audited, given.steps)
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

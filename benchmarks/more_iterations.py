"""Whether more iterations ever make a reconstruction worse, image by image, on held-out data.

    python benchmarks/more_iterations.py --sets faces retinamnist=PATH pneumoniamnist=PATH --images 7

One-image updates of one local step, labels known, from the same start; the images of fast_or_published.py. Told are the
mean PSNR after each number of iterations, up to contrast, and of how many images it fell by more than ``--slack`` from
one number to the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import pairwise

import torch
from fast_or_published import VARIANTS, held_out

from attacks import MODELS, make_model, observation, up_to_contrast
from shadow_defense.attacks.build import AttackSettings
from shadow_defense.metrics.psnr import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["faces", "chest_phantom", "fundus_phantom"])
    parser.add_argument("--images", type=int, default=7, help="of each set")
    parser.add_argument("--iterations", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--variant", choices=VARIANTS, default="fast")
    parser.add_argument("--model", choices=MODELS, default="convnet")
    parser.add_argument("--slack", type=float, default=0.5, help="decibels that an image may lose")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for source in given.sets:
        truths = held_out(source, given.images)
        model = make_model(given.model, channels=truths.shape[1])
        reached: list[list[float]] = []
        for case, truth in enumerate(truths.split(1)):
            seen = observation(model, truth)
            attacks = [
                AttackSettings(options={"variant": given.variant, "iterations": count}).build()
                for count in given.iterations
            ]
            found = [up_to_contrast(each.reconstruct(seen, seed=case).images, truth) for each in attacks]
            reached.append([psnr(images, truth).item() for images in found])
        steps = [pairwise(row) for row in reached]
        results[source.partition("=")[0]] = {
            "images": len(reached),
            "psnr": [round(statistics.fmean(column), 1) for column in zip(*reached, strict=True)],
            "worse": [
                sum(later < earlier - given.slack for earlier, later in step) for step in zip(*steps, strict=True)
            ],
        }
    print(json.dumps(results) if given.json else "\n".join(f"{name}: {value}" for name, value in results.items()))


if __name__ == "__main__":
    main()

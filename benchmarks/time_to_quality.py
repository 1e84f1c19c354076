"""Seconds of processor time until Inverting Gradients' fast variant returns an image of a given PSNR, beside another.

    .venv/bin/python benchmarks/time_to_quality.py --against breaching --quality 25 --images 3
    .venv/bin/python benchmarks/time_to_quality.py --against published --model resnet18 --quality 20 --images 1 --json

Faces of 32 px, one for each colour, one local step, labels known; both sides in turn in one process with one thread, on
the same update from the same start. Each side is run with 50 iterations, then with twice as many, and again, until what
it returns is as near to the truth as asked; counted is the time of that last run alone, which an attacker needs who
knows how many iterations to take. `published` is this project's published variant; breaching is run with two weights of
smoothness, and its better one counts, image by image. An image that a side does not get to in its most iterations
counts with the time of its longest run. Then the other side is run once more, with as many iterations as it does in
the time that this project took: the quality at equal time. On both sides images are compared up to their
contrast, which an update of a normalised network does not tell.

    .venv/bin/python benchmarks/time_to_quality.py --model resnet18 --quality 20 --images 3
    .venv/bin/python benchmarks/time_to_quality.py --batch 4 --quality 20 --images 3

breaching is not a requirement: `pip install breaching`, best in an environment of its own, since it brings torchvision.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attacks import (
    MODELS,
    breaching_attack,
    coloured_faces,
    make_model,
    max_assignment,
    observation,
    up_to_contrast,
)
from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import Observation

FIRST_BUDGET = 50
SMOOTHNESS = (0.2, 0.01)

Run = Callable[[int], Tensor]
"""From a number of iterations to images in [0, 1]."""


class Arrival(NamedTuple):
    """The run that got there first, or the longest one; seconds of processor time, PSNR in dB."""

    seconds: float
    iterations: int
    psnr: float

    def got_there(self, quality: float) -> bool:
        return self.psnr >= quality

    def iterations_in(self, seconds: float) -> int:
        """How many this side does in that time, one at least."""
        return max(1, round(seconds * self.iterations / self.seconds))


def nearness(images: Tensor, truth: Tensor) -> float:
    """PSNR up to contrast, in dB."""
    return max_assignment(up_to_contrast(images, truth), truth)


def arrival(run: Run, truth: Tensor, quality: float, most: int) -> Arrival:
    """The first of the budgets 50, 100, 200, ... up to ``most`` that is enough for ``quality``, or the last."""
    budget = FIRST_BUDGET
    while True:
        started = time.process_time()
        images = run(budget)
        seconds = time.process_time() - started
        arrived = Arrival(seconds, budget, nearness(images, truth))
        if arrived.got_there(quality) or 2 * budget > most:
            return arrived
        budget *= 2


def better(arrivals: list[Arrival], quality: float) -> Arrival:
    """The quickest of those that got there; where none did, the best image."""
    there = [each for each in arrivals if each.got_there(quality)]
    return min(there, key=lambda each: each.seconds) if there else max(arrivals, key=lambda each: each.psnr)


def ours(seen: Observation, seed: int, variant: str) -> Run:
    def run(iterations: int) -> Tensor:
        chosen = {"variant": variant, "iterations": iterations}
        attack = AttackSettings(attack="inverting-gradients", options=chosen).build()
        return attack.reconstruct(seen, seed=seed).images

    return run


def theirs(seen: Observation, seed: int, against: str) -> list[Run]:
    if against == "published":
        return [ours(seen, seed, "published")]

    def with_smoothness(weight: float) -> Run:
        return lambda iterations: breaching_attack(seen, iterations, seed, weight)()

    return [with_smoothness(weight) for weight in SMOOTHNESS]


def at_equal_time(runs: list[Run], arrivals: list[Arrival], truth: Tensor, seconds: float) -> float:
    """PSNR of the better of ``runs``, each stopped after so many iterations as it does in ``seconds``."""
    stopped = zip(runs, arrivals, strict=True)
    return max(nearness(run(arrived.iterations_in(seconds)), truth) for run, arrived in stopped)


def compared(arguments: argparse.Namespace) -> dict[str, object]:
    sides: dict[str, list[Arrival]] = {"ours": [], "theirs": []}
    equal_time = []
    for case in range(arguments.images):
        first = (arguments.skip + case) * arguments.batch
        truth = coloured_faces(first + arguments.batch)[first:]
        seen = observation(make_model(arguments.model, channels=3), truth)
        runs = {"ours": [ours(seen, case, "fast")], "theirs": theirs(seen, case, arguments.against)}
        found: dict[str, list[Arrival]] = {}
        for side, several in runs.items():
            found[side] = [arrival(run, truth, arguments.quality, arguments.most) for run in several]
            sides[side].append(better(found[side], arguments.quality))
            print(f"update {case} {side}: {sides[side][-1]}", file=sys.stderr, flush=True)
        equal_time.append(at_equal_time(runs["theirs"], found["theirs"], truth, sides["ours"][-1].seconds))
    ratios = [them.seconds / us.seconds for us, them in zip(*sides.values(), strict=True)]
    return {
        "model": arguments.model,
        "against": arguments.against,
        "batch": arguments.batch,
        "quality": arguments.quality,
        "images": arguments.images,
        "ratio": statistics.median(ratios),
        **{f"{side}_seconds": statistics.median(each.seconds for each in found) for side, found in sides.items()},
        **{f"{side}_psnr": statistics.fmean(each.psnr for each in found) for side, found in sides.items()},
        **{
            f"{side}_got_there": statistics.fmean(each.got_there(arguments.quality) for each in found)
            for side, found in sides.items()
        },
        "theirs_psnr_at_equal_time": statistics.fmean(equal_time),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=("breaching", "published"), default="breaching")
    parser.add_argument("--quality", type=float, default=25.0, help="PSNR in dB")
    parser.add_argument("--images", type=int, default=3, help="updates attacked by both sides, of --batch images each")
    parser.add_argument("--skip", type=int, default=0, help="updates left out at the start")
    parser.add_argument("--model", choices=MODELS, default="convnet")
    parser.add_argument("--batch", type=int, default=1, help="images in an update")
    parser.add_argument("--most", type=int, default=800, help="iterations of a side's longest run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.against == "breaching" and importlib.util.find_spec("breaching") is None:
        sys.exit("breaching is not installed: pip install breaching, best in an environment of its own")
    torch.set_num_threads(1)
    result = compared(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()

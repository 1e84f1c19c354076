"""Both variants of Inverting Gradients after the same number of iterations, image by image, on data held out.

    python benchmarks/fast_or_published.py --sets faces chest_phantom fundus_phantom --images 7 --iterations 150

An iteration of one costs what one of the other costs, so that this is quality at equal time. Updates of one local step
on one image, or on `--batch` many, labels known, both sides from the same start, with `--noise` under Gaussian noise so
many times as long as the update. What the fast variant's rate and weight were chosen on (the first 32 faces, the first
five images of other sets) is left out. Images are compared up to their contrast, which an update of a normalised
network does not tell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from attacks import MODELS, SIZE, make_model, observation, up_to_contrast
from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import Observation
from shadow_defense.data.build import load_dataset
from shadow_defense.data.settings import DataSettings
from shadow_defense.metrics.fidelity import score_reconstructions

VARIANTS = ("fast", "published")
CHOSEN_ON = {"faces": 32}


def held_out(source: str, count: int) -> Tensor:
    """Test images in their own channels; ``source`` may be ``name=path``."""
    name, _, path = source.partition("=")
    images = load_dataset(DataSettings(source=name, path=Path(path) if path else None, image_size=SIZE), 0).test
    first = CHOSEN_ON.get(name, 5)
    return images.unit_images()[first : first + count]


def under_noise(seen: Observation, length: float, seed: int) -> Observation:
    """The same update and Gaussian noise, so many times as long as it over all tensors together."""
    draws = torch.Generator().manual_seed(seed)
    sent = {name: tensor for name, tensor in seen.update.tensors.items() if tensor.is_floating_point()}
    noise = {name: torch.randn(tensor.shape, generator=draws) for name, tensor in sent.items()}
    own, drawn = (torch.cat([tensor.flatten() for tensor in part.values()]).norm() for part in (sent, noise))
    noisy = {name: tensor + length * own / drawn * noise[name] for name, tensor in sent.items()}
    return replace(seen, update=replace(seen.update, tensors={**seen.update.tensors, **noisy}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["faces", "chest_phantom", "fundus_phantom"])
    parser.add_argument("--images", type=int, default=7, help="of each set")
    parser.add_argument("--batch", type=int, default=1, help="images of an update, by which --images is divided")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.0, help="lengths of the update, of the noise that lies on it")
    parser.add_argument("--model", choices=MODELS, default="convnet")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {
        "model": arguments.model,
        "iterations": arguments.iterations,
        "batch": arguments.batch,
        "noise": arguments.noise,
    }
    for source in arguments.sets:
        truths = held_out(source, arguments.images)
        model = make_model(arguments.model, channels=truths.shape[1])
        found: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in VARIANTS}
        for case, truth in enumerate(truths.split(arguments.batch)):
            seen = under_noise(observation(model, truth), arguments.noise, case)
            for variant in VARIANTS:
                options = {"variant": variant, "iterations": arguments.iterations}
                started = time.process_time()
                images = AttackSettings(options=options).build().reconstruct(seen, seed=case).images
                seconds = time.process_time() - started
                rows = score_reconstructions(up_to_contrast(images, truth), truth)
                of = (statistics.fmean(row[f"{measure}_whole"] for row in rows) for measure in ("psnr", "ssim"))
                found[variant].append((*of, seconds))
            print(
                f"{source} {case}: { ({name: each[-1] for name, each in found.items()}) }", file=sys.stderr, flush=True
            )
        fast, published = found.values()
        results[source] = {
            "images": len(truths),
            **{
                f"better by {measure}": sum(a[i] > b[i] for a, b in zip(fast, published, strict=True)) / len(fast)
                for i, measure in enumerate(("psnr", "ssim"))
            },
            **{
                variant: [round(statistics.fmean(column), 3) for column in zip(*rows, strict=True)]
                for variant, rows in found.items()
            },
        }
        print(source, json.dumps(results[source]), file=sys.stderr, flush=True)
    print(json.dumps(results) if arguments.json else "\n".join(f"{name}: {value}" for name, value in results.items()))


if __name__ == "__main__":
    main()

"""How near latent codes come to a configuration's images, by where they start and how many iterations they take.

    python benchmarks/latent_starts.py demo/shadow/generator.safetensors --examples 0 128 256 --iterations 20 40

Of the first Shadow arm, all else as it is there: mean squared error in normalised units over the images of all
clients, and processor seconds, with each client's own linear map.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from shadow_defense.config import load_config
from shadow_defense.experiment.scene import Scene
from shadow_defense.generators.build import load_generator
from shadow_defense.shadow.encoding import encode_samples
from shadow_defense.shadow.rendering import render
from shadow_defense.shadow.settings import ShadowSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generator", type=Path)
    parser.add_argument("--config", default="demo", help="a preset or a YAML file")
    parser.add_argument("--examples", type=int, nargs="+", default=[0, 128, 256, 512])
    parser.add_argument("--iterations", type=int, nargs="+", default=[20, 40])
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(given.config, [])
    arm = next(each for each in config.arms.values() if each.defense == "shadow")
    rate = ShadowSettings(**arm.options).latent_learning_rate
    generator, data = load_generator(given.generator), Scene(config).dataset
    print("| examples | iterations | mean squared error | seconds |\n|---|---|---|---|")
    for examples in given.examples:
        for iterations in given.iterations:
            errors, begun = [], time.process_time()
            for client in data.clients:
                images = data.normalisation.apply(client.train.unit_images())
                codes = encode_samples(
                    generator,
                    images,
                    client.train.sample_ids,
                    data.normalisation,
                    learning_rate=rate,
                    iterations=iterations,
                    examples=examples,
                )
                with torch.no_grad():
                    rebuilt = render(generator, {}, codes, data.image_size, data.normalisation)
                errors.append((rebuilt - images).square().mean(dim=(1, 2, 3)))
            seconds = time.process_time() - begun
            print(f"| {examples} | {iterations} | {torch.cat(errors).mean():.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""How well a generator can imitate images: PSNR of inverted images, in each of its latent spaces.

    .venv/bin/python benchmarks/latent_inversion.py generator.safetensors --data FOLDER-OR-NPZ [--images 16]

Beside it the mean image, which any generator should beat. Step 2 of Shadow Defense does just this, in z.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from shadow_defense.data.public import read_public_images
from shadow_defense.generators.build import load_generator
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.latents import invert_latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generators", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| generator | px | space | mean PSNR dB | least | greatest | ms a picture and iteration |")
    print("|---|---|---|---|---|---|---|")
    for path in arguments.generators:
        generator = load_generator(path).requires_grad_(False)
        images = read_public_images(
            arguments.data, image_size=None, channels=generator.channels, limit=arguments.images, seed=0
        ).images
        side = generator.image_size
        unit = F.interpolate(images / 255, (side, side), mode="bilinear", antialias=True, align_corners=False)
        mean = psnr((unit - unit.mean(0)).square().mean((1, 2, 3)))
        print(f"| mean image | {side} | - | {mean.mean():.1f} | {mean.min():.1f} | {mean.max():.1f} | - |")
        for space in generator.latent_spaces:
            draws = named_generator(0, "latent inversion")
            with torch.no_grad():
                start = generator.encode(torch.randn(len(unit), generator.z_dim, generator=draws), space)
            started = time.perf_counter()
            found = invert_latents(
                lambda codes, g=generator, s=space: (g.decode(codes, s).clamp(-1, 1) + 1) / 2,
                unit,
                start,
                learning_rate=arguments.learning_rate,
                iterations=arguments.iterations,
                patience=arguments.iterations,
            )
            seconds = (time.perf_counter() - started) / found.iterations / len(unit)
            reached = psnr(found.error)
            print(
                f"| {path.parent.name} | {side} | {space} | {reached.mean():.1f} | {reached.min():.1f} | "
                f"{reached.max():.1f} | {1000 * seconds:.1f} |",
                flush=True,
            )


def psnr(error: torch.Tensor) -> torch.Tensor:
    return -10 * error.log10()


if __name__ == "__main__":
    main()

"""StyleGAN3 on this CPU: milliseconds a batch and peak memory, ours beside a plain implementation.

    .venv/bin/python benchmarks/generator.py [--sizes 32 64 128] [--batches 1 4 8] [--widths small full] [--plain]

Every cell is two fresh processes (memory peaks cannot be taken back). A cell's time is the least of several
repetitions; forward + backward differentiates the images' mean square for the latent codes and all parameters.
``--plain`` adds the plain implementation (plain_synthesis.py), with glibc's default allocator and with the tuned one
(large blocks kept instead of returned), which the spec's table calls "off." and "off.+malloc"; it needs many GB at
full width. The convolution rate of the machine stands above the table, to compare machines by.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from defended_step import peak_megabytes
from plain_synthesis import convolution_rate, plain_synthesis

from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator

WIDTHS = {"small": {"channel_base": 4096, "channel_max": 128}, "full": {"channel_base": 32768, "channel_max": 512}}
KEPT_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


def least_seconds(step: Callable[[], object], repetitions: int) -> float:
    step()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return min(times)


def measure(size: int, width: str, batch: int, implementation: str, repetitions: int, threads: int) -> dict[str, float]:
    """One cell, in this process: milliseconds and MB above what the process had before the first image."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    generator = StyleGAN3Generator(size, 1, **WIDTHS[width])
    z = torch.randn(batch, generator.z_dim, requires_grad=True)

    def forward() -> torch.Tensor:
        if implementation == "ours":
            return generator(z)
        return plain_synthesis(generator.synthesis, generator.styles(z))

    def both() -> None:
        forward().square().mean().backward()
        generator.zero_grad(set_to_none=True)

    before = peak_megabytes()
    with torch.no_grad():
        forward_seconds = least_seconds(forward, repetitions)
    both_seconds = least_seconds(both, repetitions)
    return {"forward": 1e3 * forward_seconds, "both": 1e3 * both_seconds, "memory": peak_megabytes() - before}


def cell(size: int, width: str, batch: int, implementation: str, repetitions: int, threads: int) -> dict[str, float]:
    """The same in a fresh process; ``plain tuned`` is plain with an allocator that keeps large blocks."""
    environment = dict(os.environ)
    if implementation == "plain tuned":
        environment.update(KEPT_BLOCKS)
    task = [size, width, batch, implementation.split()[0], repetitions, threads]
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(task)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        return {"forward": float("nan"), "both": float("nan"), "memory": float("nan")}
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="measure the plain implementation too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads, configuration T, 1 channel, "
        f"3x3 convolution {convolution_rate():.0f} GFLOP/s\n"
    )
    kinds = ["ours", "plain", "plain tuned"] if arguments.plain else ["ours"]
    headings = [f"{kind} {what}" for kind in kinds for what in ("fwd ms", "f+b ms", "MB")]
    ratios = ["f+b plain/ours", "f+b tuned/ours", "MB ours/plain"] if arguments.plain else []
    print("| width | px | batch | " + " | ".join(headings + ratios) + " |")
    print("|---" * (3 + len(headings) + len(ratios)) + "|")
    for width in arguments.widths:
        for size in arguments.sizes:
            for batch in arguments.batches:
                found = [cell(size, width, batch, kind, arguments.repetitions, arguments.threads) for kind in kinds]
                figures = [f"{row[what]:.0f}" for row in found for what in ("forward", "both", "memory")]
                if arguments.plain:
                    ours, plain, tuned = found
                    figures += [
                        f"{plain['both'] / ours['both']:.1f}",
                        f"{tuned['both'] / ours['both']:.1f}",
                        f"{ours['memory'] / plain['memory']:.2f}",
                    ]
                print(f"| {width} | {size} | {batch} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()

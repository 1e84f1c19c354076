"""What bounds the attacks' loop: the core's peak, what the convolutions alone reach, and what a whole iteration does.

    .venv/bin/python benchmarks/bounds.py --models convnet

Billions of floating-point operations a second of processor time, one thread, 32 px, one image. The peak is a product of
two matrices of 1,024 rows, in single precision and in bfloat16; the model is a forward pass and a backward pass to
weights and image, its operations counted by torch's own counter; an iteration is two such passes, the second without
gradients of weights, and all that goes with them.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable

import torch
from defended_step import median_seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attacks import LOSS, MODELS, attack, make_model, observation

ROWS = 1024


def operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak(kind: torch.dtype, repetitions: int) -> float:
    left, right = (torch.rand(ROWS, ROWS, dtype=kind) for _ in range(2))
    return 2 * ROWS**3 / median_seconds(lambda: left @ right, repetitions) / 1e9


def passes(model: nn.Module, image: Tensor, *, weights: bool) -> Callable[[], object]:
    """A forward pass, and a backward pass to the image, and to the weights if asked."""
    # Laid out as the attack has it.
    own = copy.deepcopy(model).requires_grad_(weights).to(memory_format=torch.channels_last)
    # The counter hooks what a module is given, and no leaf can be hooked so: it is given a view.
    label, image = torch.zeros(1, dtype=torch.long), image.clone().requires_grad_()
    wanted = [image, *(own.parameters() if weights else ())]
    return lambda: torch.autograd.grad(LOSS(own(image.view_as(image)), label), wanted)


def measured(name: str, iterations: int, repetitions: int) -> dict[str, float]:
    model, image = make_model(name), torch.rand(1, 1, 32, 32)
    both, second = passes(model, image, weights=True), passes(model, image, weights=False)
    seen, chosen = observation(model, image), attack("inverting-gradients", iterations)
    alone = median_seconds(both, repetitions) + median_seconds(second, repetitions)
    whole = median_seconds(lambda: chosen.reconstruct(seen, seed=0), 3) / iterations
    work = (operations(both) + operations(second)) / 1e9
    return {
        "GFLOP an iteration": work,
        "ms of its passes": 1000 * alone,
        "ms an iteration": 1000 * whole,
        "GFLOP/s of the passes": work / alone,
        "GFLOP/s": work / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["convnet", "resnet18"])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {
        f"peak {name}, GFLOP/s": round(peak(kind, arguments.repetitions), 1)
        for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    for name in arguments.models:
        values = measured(name, arguments.iterations, arguments.repetitions)
        found[name] = {key: round(value, 3) for key, value in values.items()}
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()

"""Milliseconds of processor time an iteration and victim, of one-image updates of one global model, taken three ways.

    .venv/bin/python benchmarks/victims.py --victims 8

``one by one``: as the attacks do it. ``mapped``: all victims in one batch, each with its own objective, both passes
under ``torch.func.vmap``, with weights for each victim (grouped convolutions). ``one update``: the same images as one
client's batch, which has one gradient and one objective: no way to take victims together costs less than that. In turn,
one thread, medians; colour faces of 32 px. The mapped way is written out here, without the sides of kinks: it is timed,
not used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from attacks import LOSS, MODELS, coloured_faces, make_model, observation
from shadow_defense.attacks.matching_objective import MatchingObjective
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.models.functional import Substitution

ROUNDS = 5


def matched(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """One evaluation and derivative of the attacks' own objective for an update on ``images``."""
    objective = MatchingObjective(
        observation(model, images), matching=cosine_distance, prior=lambda _: torch.zeros(()), longest_unroll=1
    )
    candidate = torch.rand_like(images)[None].requires_grad_()
    return lambda: torch.autograd.grad(objective(candidate).total.sum(), candidate)


def mapped(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """The derivatives of all victims' objectives in one call."""
    called = Substitution(model.eval(), dict(model.named_parameters()))
    still = {name: tensor.detach() for name, tensor in model.named_parameters()}
    labels = torch.arange(len(images)) % 2

    def loss(parameters: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return LOSS(called(parameters, (image[None],)), label[None])

    def one(own: Mapping[str, Tensor], image: Tensor, label: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        gradient, slope = grad(loss, argnums=(0, 1))(own, image, label)
        names = list(gradient)
        along = grad(lambda given: cosine_distance([given[name] for name in names], [target[name] for name in names]))(
            gradient
        )
        moved = {name: tensor + 1e-3 * along[name] for name, tensor in own.items()}
        return grad(loss, argnums=1)(moved, image, label) - slope

    # In the first pass too the mapped weights are quicker than the same ones for all.
    each = {name: tensor.expand(len(images), *tensor.shape) for name, tensor in still.items()}
    targets = vmap(grad(loss))(each, images, labels)
    return lambda: vmap(one)(each, torch.rand_like(images), labels, targets)


def milliseconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return 1000 * (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["convnet", "resnet18"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = coloured_faces(arguments.victims)
    results = {}
    for name in arguments.models:
        model = make_model(name, channels=3)
        alone = [matched(model, image[None]) for image in images]
        ways: dict[str, Callable[[], object]] = {
            "one by one": lambda alone=alone: [victim() for victim in alone],
            "mapped": mapped(model, images),
            "one update": matched(model, images),
        }
        # The first call also checks the derivative.
        for call in ways.values():
            call()
        spent = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, call in ways.items():
                spent[way].append(milliseconds(call) / arguments.victims)
        results[name] = {way: round(statistics.median(each), 1) for way, each in spent.items()}
        results[name]["ratio"] = round(results[name]["one by one"] / results[name]["mapped"], 2)
    print(json.dumps(results) if arguments.json else "\n".join(f"{name}: {found}" for name, found in results.items()))


if __name__ == "__main__":
    main()

"""What a round costs on images that were protected once, beside an undefended one.

    python benchmarks/protected_round.py

One client of --images at --side pixels. Rounds are timed in turn, on one thread; the median of their ratios is told.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import Resources
from shadow_defense.federated.client import prepare_defense, train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

NORMALISATION = Normalisation((0.5,), (0.25,))
MODELS = {
    "convnet": ModelSettings(name="convnet", normalisation="group", activation="gelu"),
    "resnet18": ModelSettings(name="resnet18", normalisation="group"),
}


def smooth(count: int, side: int, name: str) -> ImageSet:
    draws = torch.Generator().manual_seed(len(name))
    small = torch.rand(count, 1, 8, 8, generator=draws)
    pixels = (F.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 1) * 255).round().byte()
    return ImageSet(pixels, torch.arange(count) % 2, tuple(f"{name}/{place}" for place in range(count)))


def seconds(model: torch.nn.Module, client: ClientData, defense: Defense, round: int, rounds: int) -> float:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begun = time.perf_counter()
    train_locally(
        model,
        state,
        client,
        defense,
        settings=TrainingSettings(rounds=rounds, learning_rate=0.01),
        round=round,
        normalisation=NORMALISATION,
        loss_fn=F.cross_entropy,
        seed=0,
    )
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    public, own = smooth(200, given.side, "public"), smooth(given.images, given.side, "own")
    client = ClientData("site", own, own, own, given.batch_size)
    resources = Resources(None, NORMALISATION, public, 2, "site", 0)
    for name, chosen in MODELS.items():
        plain = build_model(chosen, channels=1, classes=2, image_size=(given.side, given.side), seed=0)
        for texture in ("white", "task"):
            settings = DefenseSettings(defense="protect-once", options={"texture": texture})
            defense, model = settings.build(resources), settings.whole_model(plain, 0, public, NORMALISATION)
            begun = time.perf_counter()
            prepare_defense(defense, client, NORMALISATION)
            prepared = time.perf_counter() - begun
            ratios = []
            for round in range(given.rounds):
                undefended = seconds(plain, client, Defense(), round, given.rounds)
                ratios.append(seconds(model, client, defense, round, given.rounds) / undefended)
            print(
                f"{name}, {texture}: a round takes {statistics.median(ratios):.3f} of an undefended one "
                f"({min(ratios):.3f} to {max(ratios):.3f}); {len(own)} images prepared in {prepared:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What a malicious server reads of one-image clients under each defense, in one round and in all.

    python benchmarks/malicious_server.py docs/results/pneumoniamnist.yaml --data pneumoniamnist.npz
    python benchmarks/malicious_server.py STUDY.yaml --data pneumoniamnist.npz --only dp-sgd,local-dp --images 50

The server sends a model of its own making, planted anew in each round: a trainable weight for each of k numbers of the
image, which anybody can measure on public images, and behind it a factor so large that nothing else of the gradient
counts. A client's step on it is that image's k numbers, times what the defense makes of them. How to go back from
updates to images the server learns from updates of public images, which it makes with its own copy of the defense; so
it does for each k, and takes the one that brings public images back best that it did not learn from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation, concatenated
from shadow_defense.experiment.plans.evidence.plan import Evidence, base_of
from shadow_defense.experiment.plans.evidence.reading import load_study
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.training import build_defense
from shadow_defense.federated.client import prepare_defense, train_locally
from shadow_defense.metrics.confidence import mean_interval
from shadow_defense.metrics.intervals import share_interval
from shadow_defense.metrics.psnr import psnr
from shadow_defense.metrics.ssim import ssim
from shadow_defense.protection.whitening import Whitening, measure_whitening
from shadow_defense.report.kit.formatting import counted

GAIN = 1e4
"""Of what is planted: beside it the gradient of the agreed model is nothing."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the regression from updates to numbers, in units of the updates' variance."""


class PlantedReader(nn.Module):
    """``GAIN (w . h(x)) v``, h the leading whitened principal components over public images, w trained from 0.

    The gradient of w is ``GAIN v . (softmax - y) h(x)``. Each of the k weights is a tensor of its own: what keeps the
    largest entries of a tensor keeps all of them. The agreed model is there, and has no say.
    """

    def __init__(self, agreed: nn.Module, whitening: Whitening, count: int, classes: int, reads: Normalisation) -> None:
        super().__init__()
        self.agreed, self.normalisation = agreed, reads
        self.register_buffer("mean", whitening.mean)
        self.register_buffer("directions", whitening.directions[:, :count] / whitening.deviations[:count])
        self.planted = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(count)])
        self.register_buffer("answer", GAIN * torch.eye(classes)[0])

    def numbers(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """h of images in [0, 1]."""
        return (images.flatten(1) - self.get_buffer("mean")) @ self.get_buffer("directions")

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        read = self.numbers(self.normalisation.invert(images)) @ torch.cat(list(self.planted))
        return 0 * self.agreed(images) + read.unsqueeze(1) * self.get_buffer("answer")


def read_images(
    scene: Scene, arm: str, model: PlantedReader, images: ImageSet, rounds: int, secret: int
) -> tuple[Float[Tensor, "rounds n k"], dict[str, float]]:
    """What one-image clients send of the planted weights, over the learning rate, and what their defense measured last.

    Each has a defense of its own, and gets the model as it was planted in every round.
    """
    settings, nothing, count = scene.config.training, images.subset([]), len(model.planted)
    state = {
        name: torch.zeros_like(each) if name.startswith("planted") else each.clone()
        for name, each in model.state_dict().items()
    }
    sent, measured = torch.zeros(rounds, len(images), count), dict[str, float]()
    for place in range(len(images)):
        client = ClientData(f"client-{place}", images.subset([place]), nothing, nothing, 1)
        defense = build_defense(scene, arm, None, client.name, secret_seed=secret)
        prepare_defense(defense, client, scene.dataset.normalisation)
        for round in range(rounds):
            result = train_locally(
                model,
                state,
                client,
                defense,
                settings=settings,
                round=round,
                normalisation=scene.dataset.normalisation,
                loss_fn=settings.loss_function(),
                seed=scene.config.seed,
            )
            planted = torch.cat([result.update.tensors[f"planted.{number}"] for number in range(count)])
            # The sign is the label's, which is granted.
            sent[round, place] = planted / settings.learning_rate_at(round) * (1 if client.train.labels[0] == 0 else -1)
            measured = dict(result.measurements)
    return sent, measured


@dataclass(frozen=True)
class Regression:
    """From updates to the numbers of an image: ``u M``, and its mean squared error by number."""

    back: Float64[Tensor, "k k"]
    errors: Float64[Tensor, "k"]


def learned(updates: Float[Tensor, "n k"], numbers: Float[Tensor, "n k"]) -> Regression:
    """Ridge regression; the ridge is the one, and its errors those, of a third that it was not learned from."""
    given, wanted, kept = updates.double(), numbers.double(), 2 * len(updates) // 3
    gram, found = given[:kept].T @ given[:kept], list[Regression]()
    for ridge in RIDGES:
        loaded = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
        back = torch.linalg.solve(loaded, given[:kept].T @ wanted[:kept])
        found.append(Regression(back, (given[kept:] @ back - wanted[kept:]).square().mean(dim=0).clamp_min(1e-9)))
    return min(found, key=lambda each: float(each.errors.sum()))


def read_arm(
    scene: Scene,
    arm: str,
    public: ImageSet,
    victims: ImageSet,
    places: Int64[Tensor, "n"],
    rounds: int,
    counts: Sequence[int],
) -> dict[int, dict[str, Any]]:
    """What is left of the victims after one round and after all, by the k that brings public images back best.

    Args:
        places: where the victims stand among all clients' images.
    """
    data, found, best = scene.dataset, dict[int, dict[str, Any]](), dict[int, float]()
    whitening = measure_whitening(data.public.unit_images())
    gallery = concatenated([client.train for client in data.clients]).unit_images()
    truths = victims.unit_images()
    mean = whitening.mean.view(1, *truths.shape[1:]).expand_as(truths)
    for count in counts:
        model = PlantedReader(scene.new_model(arm), whitening, count, data.classes, data.normalisation)
        own, _ = read_images(scene, arm, model, public, rounds, secret=1)
        theirs, measured = read_images(scene, arm, model, victims, rounds, secret=2)
        for looks in (1, rounds):
            by = learned(own[:looks].mean(dim=0), model.numbers(public.unit_images()))
            variance = whitening.deviations.double().square()
            left = float((variance[:count] * by.errors).sum() + variance[count:].sum())
            if left >= best.get(looks, math.inf):
                continue
            best[looks], numbers = left, theirs[:looks].mean(dim=0).double() @ by.back
            whole = F.pad(numbers.float(), (0, whitening.count - count))
            images = whitening.images(whole).clamp(0, 1)
            misfit = ((numbers[:, None] - model.numbers(gallery).double()) ** 2 / by.errors).sum(dim=2)
            found[looks] = {
                "numbers": count,
                "above": mean_interval((psnr(images, truths) - psnr(mean, truths)).tolist()).as_record(),
                "ssim": mean_interval(ssim(images, truths).tolist()).as_record(),
                "found": share_interval((misfit.argmin(dim=1) == places).double().tolist()).as_record(),
                "measured": measured,
            }
    return found


def written(measure: dict[str, float]) -> str:
    """A number with its interval."""
    return f"{measure['mean']:.3f} [{measure['low']:.3f}, {measure['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300, help="that are read")
    parser.add_argument("--public", type=int, default=400, help="images that the server learns from, at most")
    parser.add_argument("--rounds", type=int, help="the study's")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 32, 128], help="of numbers that are planted")
    parser.add_argument("--only", default="", help="arms whose names hold one of these, with commas between")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    _, study = load_study(given.study, given.data, seeds=[0])
    with TemporaryDirectory() as folder:
        scene = base_of(Evidence(Path(folder), study).trial(next(iter(study.models)), 0))
    everybody, public = concatenated([client.train for client in scene.dataset.clients]), scene.dataset.public
    draws, rounds = torch.Generator().manual_seed(0), given.rounds or study.training.rounds
    places = torch.randperm(len(everybody), generator=draws)[: given.images]
    learned_from = public.subset(torch.randperm(len(public), generator=draws)[: given.public].tolist())
    victims, rows = everybody.subset(places.tolist()), {}
    print(
        f"{len(victims)} images of {len(everybody)}; {len(learned_from)} of {len(public)} public ones; {rounds} rounds"
    )
    for arm in scene.config.arms:
        if any(part in arm for part in given.only.split(",")):
            for looks, row in read_arm(scene, arm, learned_from, victims, places, rounds, given.counts).items():
                rows[f"{arm}, {counted(looks, 'round')}"] = row
                spent = row["measured"].get("epsilon_spent")
                budget = f", epsilon {spent:.1f} after all" if spent else ""
                numbers = ", ".join(f"{name} {written(row[name])}" for name in ("above", "ssim", "found"))
                print(f"{arm}, {counted(looks, 'round')}: {row['numbers']} numbers, {numbers}{budget}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

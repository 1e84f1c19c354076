"""What attacks rebuild of clients that take many local steps, as the tables of docs/attacks.md.

    .venv/bin/python benchmarks/local_steps.py [--iterations 200] [--clients 3] [--ways averaged surrogate]

Faces of 16 px from scikit-image on untrained models, no defense, plain SGD. Inverting Gradients (the fast variant) by
each way of simulating more than 16 steps, and Robbing the Fed. An image that was not returned counts as the mean face.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import get_args

import torch
from one_image_clients import CLASSES, GROUP, IMPRINT, LENET, LOSS, SHAPE, Federation

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import Observation, observe
from shadow_defense.attacks.target import Beyond
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.metrics.fidelity import score_reconstructions

CLIENTS = ((1, 1, 40), (4, 2, 20), (8, 4, 20))
"""Images, batch size and epochs: forty steps each."""

RATES = (0.01, 0.1)


def seen(federation: Federation, model_name: str, first: int, client: tuple[int, int, int], rate: float) -> Observation:
    """The update of a client that holds so many private faces from ``first`` on."""
    count, batch_size, epochs = client
    data = federation.private.subset([(first + place) % len(federation.private) for place in range(count)])
    model = federation.model(model_name, DefenseSettings())
    state = copy.deepcopy(model.state_dict())
    training = TrainingSettings(learning_rate=rate, local_epochs=epochs)
    update = train_locally(
        model,
        state,
        ClientData("client", data, data, data, batch_size),
        Defense(),
        settings=training,
        round=0,
        normalisation=federation.normalisation,
        loss_fn=LOSS,
        seed=federation.seed,
    ).update
    return observe(
        threat_model("malicious server" if model_name == IMPRINT else "informed server"),
        model=model,
        loss_fn=LOSS,
        global_state=state,
        update=update,
        image_shape=SHAPE,
        classes=CLASSES,
        normalisation=federation.normalisation,
        labels=data.labels,
        local_training=LocalTraining.of(training, 0, batch_size, update.steps),
        template=federation.mean_face,
    )


def cell(
    federation: Federation, model: str, client: tuple[int, int, int], rate: float, settings: AttackSettings
) -> str:
    """Mean PSNR and SSIM over the images of several clients, and the processor time of one."""
    reached, started = list[tuple[float, float]](), time.process_time()
    for number in range(OPTIONS.clients):
        first = number * client[0]
        found = settings.build().reconstruct(seen(federation, model, first, client, rate), seed=number)
        truths = federation.private.subset([(first + place) % len(federation.private) for place in range(client[0])])
        images = truths.unit_images()
        missing = federation.mean_face.expand(max(len(images) - len(found.images), 0), *SHAPE)
        rows = score_reconstructions(torch.cat([found.images, missing]), images)
        reached += [(float(row["psnr_whole"] or 0), float(row["ssim_whole"] or 0)) for row in rows]
    psnr, ssim = (sum(each) / len(reached) for each in zip(*reached, strict=True))
    return f"{psnr:.1f} / {ssim:.2f} ({(time.process_time() - started) / OPTIONS.clients:.1f} s)"


def main() -> None:
    federation = Federation(0, Path())
    ways = OPTIONS.ways
    print("| model | learning rate | images, batch size, epochs |", " | ".join(ways), "|")
    print("|---" * (3 + len(ways)) + "|")
    for model in (LENET, GROUP):
        for rate in RATES:
            for client in CLIENTS:
                options = {"variant": "fast", "iterations": OPTIONS.iterations}
                cells = [
                    cell(federation, model, client, rate, AttackSettings(options={**options, "beyond": way}))
                    for way in ways
                ]
                print(f"| {model} | {rate} | {', '.join(map(str, client))} |", " | ".join(cells), "|", flush=True)
    print("\n| images, batch size, epochs | robbing-the-fed |\n|---|---|")
    robbing = AttackSettings(attack="robbing-the-fed", threat_model="malicious server")
    for client in ((8, 8, 1), *CLIENTS):
        print(f"| {', '.join(map(str, client))} | {cell(federation, IMPRINT, client, RATES[1], robbing)} |")
    print(f"\nThe mean face: {baseline(federation)}")


def baseline(federation: Federation) -> str:
    images = federation.private.unit_images()
    rows = score_reconstructions(federation.mean_face.expand_as(images), images)
    psnr, ssim = (sum(float(row[name] or 0) for row in rows) / len(rows) for name in ("psnr_whole", "ssim_whole"))
    return f"{psnr:.1f} / {ssim:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=get_args(Beyond), default=get_args(Beyond))
    OPTIONS = parser.parse_args()
    main()

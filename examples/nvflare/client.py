"""A site: a training in NVFlare's Client API, which three lines defend; what leaves is the difference."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import nvflare.client as flare
import torch
from faces import FacesModel, images_of
from torch import Tensor, nn

from shadow_defense import ShadowSettings
from shadow_defense.federated.nvflare.exchange import SAMPLES
from shadow_defense.federated.nvflare.shadow_guard_site import ShadowGuardSite, guarded  # <- 1
from shadow_defense.seeds import named_generator

BATCH_SIZE, LEARNING_RATE = 4, 0.1

Batches = list[tuple[Tensor, Tensor]]


def batches_of(site: str, round: int, file: Path | None) -> Batches:
    """A site's images and labels in the round's order: a process that begins anew trains on the same batches."""
    images, labels, _ = images_of(site, file)
    order = torch.randperm(len(images), generator=named_generator(0, "order", site, round))
    return [(images[chosen], labels[chosen]) for chosen in order.split(BATCH_SIZE)]


def train(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One epoch of SGD, which knows nothing of any defense."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for images, labels in batches:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()


def defended(run: str, generator: Path, file: Path | None) -> None:
    """Every round with a guard, which lies on the site's own disk: NVFlare ends and starts its process as it likes."""
    settings = ShadowSettings(strength=0.6, latent_iterations=100)
    name, model, site = flare.get_site_name(), FacesModel(), ShadowGuardSite(generator, run, settings)
    while (message := site.receive()) is not None:  # <- 2, in place of flare.receive
        model.load_state_dict(as_tensors(message))
        batches = batches_of(name, message.current_round, file)
        train(model, guarded(batches, model))
        site.send(model, steps=len(batches), samples=count(batches))  # <- 3, in place of flare.send


def undefended(file: Path | None) -> None:
    """Every round on the images as they are."""
    name, model = flare.get_site_name(), FacesModel()
    while (message := flare.receive()) is not None:
        received = as_tensors(message)
        model.load_state_dict(received)
        batches = batches_of(name, message.current_round, file)
        train(model, batches)
        difference = {name: tensor - received[name] for name, tensor in model.state_dict().items()}
        # NVFlare weighs its average by the number of steps.
        meta = {"NUM_STEPS_CURRENT_ROUND": len(batches), SAMPLES: count(batches)}
        flare.send(flare.FLModel(params=difference, params_type="DIFF", meta=meta))


def as_tensors(message: flare.FLModel) -> dict[str, Tensor]:
    """The global model: NVFlare hands over arrays or tensors."""
    return {name: torch.as_tensor(value) for name, value in message.params.items()}


def count(batches: Batches) -> int:
    """Of images."""
    return sum(len(labels) for _, labels in batches)


def main() -> None:
    """NVFlare starts this file at every site and hands it the global model, round by round."""
    options = argparse.ArgumentParser()
    options.add_argument("--run", required=True, help="a name of the training")
    options.add_argument("--generator", type=Path, help="the shadow generator; none: no defense in the training")
    options.add_argument("--images", type=Path, help="an .npz, such as `protect` writes; none: the bundled faces")
    given = options.parse_args()
    # Tiny tensors: threads that wait for one another cost more than they give.
    torch.set_num_threads(1)
    flare.init()
    if given.generator is None:
        undefended(given.images)
    else:
        defended(given.run, given.generator, given.images)


if __name__ == "__main__":
    main()

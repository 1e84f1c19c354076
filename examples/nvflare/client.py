"""A site: ShadowGuard in the training loop of an NVFlare Client API script; what leaves is the difference."""

from __future__ import annotations

import argparse
from pathlib import Path

import nvflare.client as flare
import torch
from faces import FacesModel, images_of
from torch import Tensor, nn

from shadow_defense import ShadowGuard
from shadow_defense.federated.client_state import ClientState, ClientStateFolder
from shadow_defense.federated.nvflare.exchange import SAMPLES
from shadow_defense.federated.nvflare.site_state import state_root
from shadow_defense.federated.site_secret import secret_seed
from shadow_defense.federated.states import change, digest, in_types_of
from shadow_defense.generators.build import load_generator
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.settings import ShadowSettings

BATCH_SIZE, LEARNING_RATE = 4, 0.1


class Site:
    """A site's training, which goes on where it stopped: noise maps and latent codes lie on the site's own disk.

    NVFlare ends and starts a site's process as it likes: nothing that a later round needs may be in memory only.
    """

    def __init__(self, name: str, run: str, generator: Path | None, images: Path | None = None) -> None:
        self.name, self.model, self.loss_fn = name, FacesModel(), nn.CrossEntropyLoss()
        self.images, self.labels, self.names = images_of(name, images)
        self.states = ClientStateFolder(state_root(), run, name)
        self.guard: ShadowGuard | None = None
        if generator is not None:
            settings = ShadowSettings(strength=0.6, latent_iterations=100)
            self.guard = ShadowGuard(load_generator(generator), settings, seed=secret_seed(state_root(), run, name))

    def train(self, received: dict[str, Tensor], round: int, rounds: int) -> tuple[dict[str, Tensor], int]:
        """The difference that one round makes to the global model, and the number of steps."""
        received = in_types_of(received, self.model.state_dict())
        asked = digest(received)
        before = self.states.resume(round, asked)
        if self.guard is not None and before is not None:
            self.guard.load_state_dict(before.defense)
        elif before is None:
            self.states.save(ClientState.prepared(self._remembered(), {}))
        self.model.load_state_dict(received)
        steps = self._train(received, round, rounds)
        # On disk before the update leaves: the same round asked again gives the same update.
        self.states.save(ClientState(round, asked, self._remembered(), {}))
        return change(received, self.model.state_dict()), steps

    def _train(self, received: dict[str, Tensor], round: int, rounds: int) -> int:
        optimiser = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        order = torch.randperm(len(self.images), generator=named_generator(0, "order", self.name, round))
        batches = order.split(BATCH_SIZE)
        for chosen in batches:
            images, labels = self.images[chosen], self.labels[chosen]
            if self.guard is not None:
                names = [self.names[index] for index in chosen.tolist()]
                where = {"model": self.model, "global_model": received, "round": round, "rounds": rounds}
                images = self.guard.protect(images, labels, names, loss_fn=self.loss_fn, **where)
            optimiser.zero_grad()
            self.loss_fn(self.model(images), labels).backward()
            optimiser.step()
        return len(batches)

    def _remembered(self) -> dict[str, object]:
        return {} if self.guard is None else self.guard.state_dict()


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
    site = Site(flare.get_site_name(), given.run, given.generator, given.images)
    while flare.is_running():
        message = flare.receive()
        if message is None:
            break
        difference, steps = site.train(message.params, message.current_round, message.total_rounds)
        # NVFlare weighs its average by the number of steps.
        meta = {"NUM_STEPS_CURRENT_ROUND": steps, SAMPLES: len(site.images)}
        flare.send(flare.FLModel(params=difference, params_type="DIFF", meta=meta))


if __name__ == "__main__":
    main()

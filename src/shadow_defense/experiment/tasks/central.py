"""The task of a training on the public images alone, which no client takes part in."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from shadow_defense.data.dataset import ClientData, FederatedDataset
from shadow_defense.defenses.base import Defense
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.provenance import code_hash
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks.keys import key_of, training_key
from shadow_defense.experiment.tasks.training import Training, federation
from shadow_defense.progress import Progress

BATCH_SIZE = 16

PUBLIC = "public"


class Central(Training):
    """Plain SGD on the public images, one epoch a round."""

    kind = "central-training"

    @cached_property
    def key(self) -> str:
        return key_of(code_hash("experiment/tasks/central.py"), training_key(self.scene, self.arm))

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: central training on public images"

    def compute(self, store: Store, progress: Progress) -> None:
        place, data = store.place(self), public_federation(self.scene)
        federation(self.scene, self.arm, place, {PUBLIC: Defense()}, {}, data).run(progress)


def public_federation(scene: Scene) -> FederatedDataset:
    """The scene's data with one client in place of all others, that holds the public images."""
    data = scene.dataset
    if len(data.public) == 0:
        raise ConfigError("a training on the public images needs some: raise data.public_fraction")
    nothing = data.test.subset([])
    only = ClientData(PUBLIC, data.public, nothing, nothing, min(BATCH_SIZE, len(data.public)))
    return replace(data, clients=(only,))

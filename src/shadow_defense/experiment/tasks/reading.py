"""The task of what a network says of every test image that saw the public images alone, moved by some pixels: with one
like it protection reads off an image what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from shadow_defense.defenses.protect_once import PUBLIC_SEED
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.tasks.keys import computed_on, images_key, key_of
from shadow_defense.experiment.tasks.predicting import Predicted, predicted_by
from shadow_defense.progress import Progress
from shadow_defense.protection.directions import EPOCHS, train_public_classifier


@dataclass(frozen=True, eq=False)
class Reading(RecordTask[Predicted]):
    """That network, trained for itself: a control of what protected images add to it."""

    scene: Scene

    kind = "reading-network"
    file = "predicted.json"
    record = Predicted

    @cached_property
    def key(self) -> str:
        return key_of(code_hash(__name__), images_key(self.scene), *computed_on(self.scene))

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: reading network on public images"

    def describe(self) -> Mapping[str, object]:
        return {"seed": self.scene.config.seed, "epochs": EPOCHS, "device": self.scene.device.type}

    def compute(self, store: Store, progress: Progress) -> None:
        data = self.scene.dataset
        network = train_public_classifier(
            data.public.images,
            data.public.labels,
            seed=PUBLIC_SEED,
            moved=True,
            progress=progress,
            device=self.scene.device,
        )
        self.save(store, predicted_by(network.model, data, network.normalisation))

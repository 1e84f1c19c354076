"""The task of what a network says of every test image that saw the public images alone, moved by some pixels: with one
like it protection reads off an image what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shadow_defense.defenses.protect_once import PUBLIC_SEED
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.source import code_hash
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.tasks.keys import images_parts
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

    def decided_by(self) -> Mapping[str, object]:
        return {"code": code_hash(__name__), "images": images_parts(self.scene), "epochs": EPOCHS}

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: reading network on public images"

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

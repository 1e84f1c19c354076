"""The task of the break that the learned remover has to manage; one for all arms on the same public images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from shadow_defense.attacks.removers.learned import TRAINING
from shadow_defense.attacks.removers.suite import Knowledge, breaks_unknown_noise
from shadow_defense.experiment.provenance import code_hash
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.tasks.keys import computed_on, key_of, public_key
from shadow_defense.progress import Progress


@dataclass(frozen=True)
class Broken:
    """Whether sparse noise was broken."""

    sparse_noise: bool


@dataclass(frozen=True, eq=False)
class Breaking(RecordTask[Broken]):
    """A learned remover, trained for so many steps, on sparse noise: where it fails, no worst case counts."""

    scene: Scene
    remover_steps: int

    kind = "break"
    counted = TRAINING
    file = "break.json"
    record = Broken

    @cached_property
    def key(self) -> str:
        code = code_hash("attacks/removers", "protection", "experiment/tasks/breaking.py")
        return key_of(code, public_key(self.scene), self.remover_steps, *computed_on(self.scene))

    @property
    def about(self) -> str:
        return f"seed {self.scene.config.seed}: sparse noise that a remover has to break"

    def describe(self) -> Mapping[str, object]:
        return {"remover_steps": self.remover_steps}

    def steps(self) -> int:
        return self.remover_steps

    def compute(self, store: Store, progress: Progress) -> None:
        data = self.scene.dataset
        known = Knowledge(data.public.unit_images(), data.public.labels, data.classes, device=self.scene.device)
        seed, steps = self.scene.config.seed, self.remover_steps
        self.save(store, Broken(breaks_unknown_noise(known, seed=seed, steps=steps, progress=progress)))

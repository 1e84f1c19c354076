"""Victims: clients made of a federation's images that send one update each from its stored global models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from shadow_defense.config import RunConfig
from shadow_defense.data.dataset import ClientData, FederatedDataset, concatenated
from shadow_defense.data.splits import balanced_sample
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.images import Images, shared_images
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.experiment.tasks.updating import Updating
from shadow_defense.experiment.trial import Trial
from shadow_defense.report.records.run import Round
from shadow_defense.seeds import seed_for

Positive = Annotated[int, Field(ge=1, le=1_000_000)]

LARGEST_BATCH = 8
"""Images in a batch of a victim: the larger of the paper's two sizes."""


class Victims(BaseModel):
    """How many clients of each size are attacked, of each seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    counts: dict[Positive, Positive] = Field(
        {1: 10, 8: 1}, min_length=1, description="clients attacked, by the number of their images"
    )


class VictimImages(Images):
    """A federation's images with victims in place of its clients: their images are drawn from the clients'."""

    def __init__(self, images: Images, victims: Victims) -> None:
        super().__init__(images.settings, images.seed)
        self._images, self._victims = images, victims

    @cached_property
    def dataset(self) -> FederatedDataset:
        data = self._images.dataset
        return replace(data, clients=victims_of(data, self._victims.counts, self.seed))


def victims_of(data: FederatedDataset, counts: Mapping[int, int], seed: int) -> tuple[ClientData, ...]:
    """Clients of the wanted sizes without a common image, each size's images balanced over the classes.

    Raises:
        ConfigError: where the clients hold too few images.
    """
    pool = concatenated([client.train for client in data.clients])
    wanted = sum(size * count for size, count in counts.items())
    if wanted > len(pool):
        raise ConfigError(f"victims ask for {wanted} images and the clients hold {len(pool)}: ask for fewer")
    draws, rest, nothing = np.random.default_rng(seed_for(seed, "victims")), np.arange(len(pool)), data.test.subset([])
    found = []
    for size, count in sorted(counts.items()):
        chosen = rest[balanced_sample(pool.labels.numpy()[rest], size * count, draws)]
        rest = np.setdiff1d(rest, chosen)
        for number, part in enumerate(draws.permutation(chosen).reshape(count, size), start=1):
            name = f"{size}-image-{number:02}"
            found.append(ClientData(name, pool.subset(part), nothing, nothing, min(size, LARGEST_BATCH)))
    return tuple(found)


class VictimTrial(Trial):
    """A trial whose trainings are attacked through victims: no training is repeated for an attack.

    Attributes:
        base: the federation that is trained.
        spared: arms that are not attacked.
        trainings: of each arm the updates that victims send from its stored global models.
    """

    def __init__(self, base: Trial, victims: Victims, spared: frozenset[str] = frozenset()) -> None:
        super().__init__(base.config, base.store, VictimImages(base.images, victims))
        self.base, self._victims, self._spared = base, victims, spared

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.config.model_dump_json(), self._victims.model_dump_json())

    def jobs(self) -> list[Job]:
        return [job for job in super().jobs() if job.arm not in self._spared]

    def history(self, arm: str) -> tuple[Round, ...]:
        return self.base.history_of(self.whole_trainings[arm])

    @cached_property
    def whole_trainings(self) -> dict[str, Training]:
        """By arm the training of the whole federation, which keeps its global model before each attacked round."""
        # A round is kept where somebody's update is: the smallest is as good as any.
        smallest = min(self.base.dataset.clients, key=lambda client: len(client.train)).name
        keep = {round: frozenset({smallest}) for round in self.kept}
        engine = engine_named(self.config.engine)
        return {arm: Training(self.base, arm, engine, keep) for arm in self.config.arms}

    @cached_property
    def trainings(self) -> dict[str, Task]:
        return {arm: Updating(self, training) for arm, training in self.whole_trainings.items()}


@lru_cache(maxsize=8)
def _opened(config: str, victims: str) -> Scene:
    """In another process, which loads the images once; as :func:`~shadow_defense.experiment.scene.opened_scene`."""
    parsed = RunConfig.model_validate_json(config)
    images = shared_images(parsed.data.model_dump_json(), parsed.seed)
    return Scene(parsed, VictimImages(images, Victims.model_validate_json(victims)))

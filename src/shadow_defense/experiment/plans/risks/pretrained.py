"""Risk 4: pre-trained models leak more in early rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    COLUMNS,
    NO_DEFENSE,
    Rebuilt,
    Risk,
    Trials,
    changed,
    differences,
    final_f1,
    main_attack,
    means,
    rebuilt,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.experiment.tasks.training import PUBLIC, Central, public_federation
from shadow_defense.experiment.trial import Trial
from shadow_defense.federated.training_folder import state_folder
from shadow_defense.report.records.risks import Finding, Row
from shadow_defense.report.records.scores import MEAN_IMAGE

EPOCHS = 10

FRESH, PRETRAINED = "fresh", "pretrained"

EARLY_ROUNDS = (1, 2, 4)


class CentralTrial(Trial):
    """The central training alone."""

    @cached_property
    def trainings(self) -> dict[str, Task]:
        return {PUBLIC: Central(self, PUBLIC, engine_named("in-process"))}

    def check(self) -> None:
        public_federation(self)

    def final_state(self) -> Path:
        """The file of the model that it ends with."""
        place = self.store.place(self.trainings[PUBLIC])
        return state_folder(place, self.config.training.rounds).absolute() / "global.safetensors"


class StartedTrial(Trial):
    """A federated training that begins where a central one, which is finished by then, ended."""

    def __init__(self, config: RunConfig, central: CentralTrial) -> None:
        super().__init__(config, central.store)
        self._central = central

    @cached_property
    def _started(self) -> Trial:
        return Trial(changed(self.config, model={"start": str(self._central.final_state())}), self.store)

    @cached_property
    def trainings(self) -> dict[str, Task]:
        return self._started.trainings

    def tasks(self) -> list[Task]:
        return self._started.tasks()

    def scores(self, *, control: bool = False) -> list[Score]:
        return self._started.scores(control=control)

    def check(self) -> None:
        """Nothing beyond what the trial from random weights is checked for: the start is not there yet."""


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    if base.data.public_source is not None or base.data.public_path is not None:
        raise ConfigError(
            "risk 4 pre-trains on the public images with their labels, and those of another source have other "
            "classes: leave data.public_source and data.public_path empty, or leave 4 out of --only"
        )
    if base.model.start is not None or base.model.weights is not None:
        raise ConfigError(
            "risk 4 compares a pre-trained model with one from random weights: leave model.start and model.weights "
            "empty, or leave 4 out of --only"
        )
    early = [round for round in EARLY_ROUNDS if round <= base.training.rounds]
    training = {"rounds": EPOCHS, "local_epochs": 1, "evaluate_every": EPOCHS}
    central = CentralTrial(changed(base, training=training, arms={PUBLIC: NO_DEFENSE}, attacks={}), store)
    config = changed(
        base,
        attacks={ATTACK: main_attack(base, early)},
        # The schedule of the learning rate does not depend on how long the training is.
        training={"rounds": early[-1]},
    )
    return {PUBLIC: central, FRESH: Trial(config, store), PRETRAINED: StartedTrial(config, central)}


def measure(seeds: Sequence[Trials]) -> Finding:
    starts = {name: [trials[name] for trials in seeds] for name in (FRESH, PRETRAINED)}
    attacked = [round + 1 for round in starts[FRESH][0].config.attacked_rounds(ATTACK)]
    images = {name: {round: rebuilt(found, round=round) for round in attacked} for name, found in starts.items()}
    blank = means(rebuilt(starts[FRESH], MEAN_IMAGE))["psnr"].mean
    utility = [final_f1(trials[PUBLIC], PUBLIC) for trials in seeds]
    return finding(images, blank, math.fsum(utility) / len(utility))


def finding(images: Mapping[str, Mapping[int, Rebuilt]], blank: float, start_f1: float) -> Finding:
    """From what was rebuilt by start, round (counted from 1) and image; the mean image's PSNR; F1 of the start."""
    rows = []
    for round, fresh in images[FRESH].items():
        begun = images[PRETRAINED][round]
        kinds = {FRESH: means(fresh), PRETRAINED: means(begun), "difference": differences(begun, fresh)}
        values = {f"{column}_{kind}": each[column] for column in COLUMNS for kind, each in kinds.items()}
        rows.append(Row(str(round), values))
    facts = {"mean image": blank, "start_f1": start_f1, "epochs": float(EPOCHS)}
    return Finding(value=rows[0].values["psnr_difference"], rows=tuple(rows), facts=facts)


RISK = Risk(
    4,
    "A federation that begins with a pre-trained model leaks more in its first rounds than one that begins with random "
    "weights.",
    "The same clients train from random weights and from a model trained centrally on the public images; the same "
    "early rounds of both are attacked.",
    trials,
    measure,
)

"""What an auditor is told of a client's training: a default is nobody's word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shadow_defense.attacks.observation import LocalTraining
from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.tasks.attacking import local_training
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.models.losses import LossName
from shadow_defense.validation import validated


@dataclass(frozen=True)
class Told:
    """The client's optimiser and loss; None: not told, so that nothing may rest on it."""

    optimiser: OptimiserName | None = None
    loss: LossName | None = None


def with_told(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """The configuration with what flags tell of the training in it. Raises :class:`ConfigError` for what cannot be."""
    given = {name: value for name, value in values.items() if value is not None}
    return config.model_copy(update={"training": _changed(config.training, given)})


def told_in(training: TrainingSettings) -> Told:
    """What was said in so many words, by a flag or in the YAML."""
    said = training.model_fields_set
    return Told(
        training.optimiser if "optimiser" in said else None,
        # No loss but cross entropy smooths labels.
        training.loss if said & {"loss", "label_smoothing"} else None,
    )


def told_training(
    training: TrainingSettings,
    update: ModelUpdate,
    *,
    learning_rate: float | None,
    steps: int | None,
    batch_size: int | None,
) -> LocalTraining | None:
    """All three numbers, or none: two of them are no knowledge of the local training, and likely a slip.

    Raises:
        ConfigError: naming the flags that are missing.
    """
    asked = [learning_rate, steps, batch_size]
    batch_size = batch_size or (update.samples if update.steps == 1 else None)
    values = {"--learning-rate": learning_rate, "--steps": update.steps or None, "--batch-size": batch_size}
    missing = [flag for flag, value in values.items() if value is None]
    if learning_rate is None or batch_size is None or missing:
        if any(value is not None for value in asked):
            raise ConfigError(f"the local training is known in part only: give {' and '.join(missing)} too")
        return None
    told = _changed(training, {"learning_rate": learning_rate, "milestones": ()})
    return replace(local_training(told, 0, batch_size, update.steps), optimiser=told_in(training).optimiser)


def _changed(training: TrainingSettings, values: Mapping[str, object]) -> TrainingSettings:
    """The settings with others in their place, checked, and as told as they were.

    Not by model_dump, which leaves out what is as it always was, and with it that somebody said so.
    """
    said = {name: getattr(training, name) for name in training.model_fields_set}
    return validated(TrainingSettings, said | dict(values), ConfigError, "training")

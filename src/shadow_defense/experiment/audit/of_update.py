"""An update file from anywhere as a case."""

from __future__ import annotations

from dataclasses import replace

from shadow_defense.config import RunConfig, load_config
from shadow_defense.devices import resolved_device
from shadow_defense.errors import ConfigError, UpdateError
from shadow_defense.experiment.audit.case import Case
from shadow_defense.experiment.audit.given import Given
from shadow_defense.experiment.audit.images import ModelInput, gallery_of, without_own
from shadow_defense.experiment.audit.of_model import Pictures, case_of_model
from shadow_defense.experiment.audit.reading import TensorSource, named_tensors, said
from shadow_defense.models.build import build_model


def case_of_update(given: Given) -> Case:
    """The case of an update file.

    Raises:
        ShadowDefenseError: of one line, for files that cannot be read, do not fit the model, or contradict each other.
        ThreatModelError: for an attack that reads what was not given; the line names the flag.
    """
    config = load_config(given.model, given.overrides)
    before = config.model.start if given.before is None else given.before
    if before is None:
        raise UpdateError("the global model before the round is not known: give --global (or --before) FILE")
    takes = _model_input(config, before)
    size = (takes.side, takes.side)
    model = build_model(
        config.model, channels=takes.channels, classes=takes.classes, image_size=size, seed=config.seed
    ).to(resolved_device(config.device))
    truths = None if given.truth is None else takes.images(given.truth)
    labelled = None if given.public is None else takes.labelled_images(given.public)
    public = None if labelled is None else labelled.subset(without_own(labelled.images, truths, "--public"))
    pictures = Pictures(
        truths=truths,
        public=public,
        averaged=takes.images(str(given.template)) if given.template else None if public is None else public.images,
        gallery=None if given.gallery is None else gallery_of(takes.images(given.gallery), truths),
    )
    return case_of_model(replace(given, before=before), config, model, takes.shape, takes.classes, pictures)


def _model_input(config: RunConfig, state: TensorSource) -> ModelInput:
    """As configured; channels and classes else read off the state's first convolution and last linear layer."""
    side, names = config.data.image_size, config.data.classes
    if side is None:
        raise ConfigError("the images' size is not known: set data.image_size, such as --set data.image_size=32")
    channels: int | None = config.data.channels
    classes = None if names is None else len(names)
    if channels is None or classes is None:
        tensors = list(named_tensors(state).values())
        convolutions = [tensor for tensor in tensors if tensor.dim() == 4]
        linear = [tensor for tensor in tensors if tensor.dim() == 2]
        if not convolutions or not linear:
            raise UpdateError(
                f"{said(state, 'the state')} has no convolution and linear layer to read channels and classes from: "
                "set data.channels and data.classes"
            )
        channels, classes = channels or convolutions[0].shape[1], classes or len(linear[-1])
    return ModelInput(channels, side, classes, names)

"""An update of a model that is at hand as a case: what is not given is what no attacker is granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import Observation, observe
from shadow_defense.attacks.threat_model import Knowledge, threat_model
from shadow_defense.config import RunConfig, load_config
from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.devices import resolved_device
from shadow_defense.errors import ConfigError, UpdateError
from shadow_defense.experiment.audit.case import Case, Gallery, Given, chosen_attacks, cut_to_given
from shadow_defense.experiment.audit.images import (
    ModelInput,
    gallery_of,
    normalisation_of,
    usual_contrast_of,
    without_own,
)
from shadow_defense.experiment.audit.plausibility import check_length, check_update
from shadow_defense.experiment.audit.reading import TensorSource, UpdateFiles, named_tensors, said
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.states import on_host
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.build import load_generator
from shadow_defense.models.build import build_model
from shadow_defense.seeds import seed_for
from shadow_defense.validation import validated

MOST_IMAGES = 10_000
"""Images that an attack rebuilds together: it holds all of them in memory."""


@dataclass(frozen=True)
class Pictures:
    """The images around an update; None: not given.

    Attributes:
        truths: the client's own.
        public: images of others, with labels.
        averaged: those whose mean is the mean image, and on which the normalisation is measured.
    """

    truths: UInt8[Tensor, "n c h w"] | None = None
    public: ImageSet | None = None
    averaged: UInt8[Tensor, "m c h w"] | None = None
    gallery: Gallery | None = None


def case_of_model(
    given: Given,
    config: RunConfig,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    classes: int,
    pictures: Pictures,
) -> Case:
    """The case of what was given, ``before`` and one of ``update`` and ``after`` among it.

    Args:
        config: how the images are normalised, how the attacks are set, and the seed; its model is not read.
        model: of the update; its tensors become those of ``before``.

    Raises:
        ShadowDefenseError: of one line, for tensors that do not fit the model, or what contradicts itself.
        ThreatModelError: for an attack that reads what was not given; the line names the flag.
    """
    known = {name: value for name, value in given.training.items() if value is not None}
    config = config.model_copy(update={"training": _changed(config.training, known)})
    attacks = chosen_attacks(config, given.attacks, given.threat_model, given.iterations)
    assert given.before is not None
    before, truths = given.before, pictures.truths
    fresh = {name: tensor.clone() for name, tensor in on_host(model.state_dict()).items()}
    files = UpdateFiles(model, given.samples or len(given.labels or ()) or None, given.steps)
    state = files.global_state(before)
    model.load_state_dict(state)
    update = _update(given, files, state)
    source = given.after if given.update is None else given.update
    file = "the update" if source is None else said(source, "the update")
    # A smoothed label gives every class a share.
    present = classes if config.training.label_smoothing else len(set(given.labels or ())) or update.samples
    check_update(update.tensors, state, fresh, model, what=file, present=present)
    # A default is nobody's word; and no loss but cross entropy smooths labels.
    told = config.training.model_fields_set
    optimiser = config.training.optimiser if "optimiser" in told else None
    loss = config.training.loss if told & {"loss", "label_smoothing"} else None
    local = _local_training(given, config.training, update)
    if local is not None:
        local = replace(local, optimiser=optimiser)
        if (optimiser, loss) == ("sgd", "ce"):
            check_length(update.tensors, model, local, file)
    mean_image = None if pictures.averaged is None else pictures.averaged.float().mean(0) / 255
    normalisation = normalisation_of(config.data, pictures.averaged, image_shape[0])
    usual_contrast = usual_contrast_of(pictures.averaged, normalisation)
    labels = torch.tensor(given.labels or (), dtype=torch.int64)
    if ((labels < 0) | (labels >= classes)).any():
        raise ConfigError(f"--labels {','.join(map(str, given.labels or ()))}: expected 0 to {classes - 1}")
    # Before anything is tried: hours of one attack should not end in the refusal of the next.
    knowledge = _knowledge(given, pictures, local)
    threats = {
        name: cut_to_given(threat_model(attack.threat_model), knowledge, attack.build().needs, name)
        for name, attack in attacks.items()
    }

    def observation(attack: str) -> Observation:
        granted = threat_model(attacks[attack].threat_model).granted
        return observe(
            threats[attack],
            model=model,
            loss_fn=config.training.loss_function(),
            global_state=state,
            update=update,
            image_shape=image_shape,
            classes=classes,
            normalisation=normalisation,
            labels=labels,
            # Neither is ever granted where it is not given.
            local_training=local or LocalTraining(1.0, update.samples, 1, config.training.batch_norm),
            template=torch.full(image_shape, 0.5) if mean_image is None else mean_image,
            usual_contrast=usual_contrast,
            generator=None if given.generator is None else partial(load_generator, given.generator),
            public=pictures.public,
            optimiser=optimiser if "local training" in granted else None,
        )

    return Case(
        name=f"the update in {file}" if isinstance(source, Path) else file,
        subject={"update": file, "global": said(before, "given"), "model": given.model, "samples": update.samples},
        config=config,
        attacks=attacks,
        observe=observation,
        seed=lambda attack: seed_for(config.seed, "audit", attack),
        local_training=local,
        optimiser=optimiser,
        loss=loss,
        truths=None if truths is None else truths.float() / 255,
        mean_image=mean_image,
        gallery=pictures.gallery,
        notes=(*_notes(given, attacks, knowledge, normalisation, config), *files.notes),
    )


def _update(given: Given, files: UpdateFiles, state: dict[str, Tensor]) -> ModelUpdate:
    if (given.update is None) == (given.after is None):
        raise UpdateError("expected one of --update (a difference) and --after (the client's state, with --before)")
    if given.update is not None:
        update = files.difference(given.update, state)
    else:
        assert given.after is not None
        update = files.after(given.after, state)
    if update.samples > MOST_IMAGES:
        raise UpdateError(
            f"{update.samples} images are behind the update, it is said: at most {MOST_IMAGES} are rebuilt at once; "
            "audit a client with fewer"
        )
    if given.labels is not None and len(given.labels) != update.samples:
        raise ConfigError(f"--labels names {len(given.labels)} labels for {update.samples} images: give one an image")
    return update


def _local_training(given: Given, training: TrainingSettings, update: ModelUpdate) -> LocalTraining | None:
    """All three numbers, or none: two of them are no knowledge of the local training, and likely a slip.

    Raises:
        ConfigError: naming the flags that are missing.
    """
    learning_rate, steps = given.learning_rate, update.steps or None
    batch_size = given.batch_size or (update.samples if update.steps == 1 else None)
    values = {"--learning-rate": learning_rate, "--steps": steps, "--batch-size": batch_size}
    missing = [flag for flag, value in values.items() if value is None]
    if learning_rate is None or batch_size is None or missing:
        if any(value is not None for value in (learning_rate, given.steps, given.batch_size)):
            raise ConfigError(f"the local training is known in part only: give {' and '.join(missing)} too")
        return None
    return LocalTraining.of(
        _changed(training, {"learning_rate": learning_rate, "milestones": ()}), 0, batch_size, update.steps
    )


def _changed(training: TrainingSettings, values: Mapping[str, object]) -> TrainingSettings:
    """The settings with others in their place, checked; what was set by nobody stays so.

    Not by model_dump, which leaves out what is as it always was, and with it that somebody said so.
    """
    said = {name: getattr(training, name) for name in training.model_fields_set}
    return validated(TrainingSettings, said | dict(values), ConfigError, "training")


def _knowledge(given: Given, pictures: Pictures, local: LocalTraining | None) -> frozenset[Knowledge]:
    """What an attacker may be granted of what was given."""
    known: dict[Knowledge, bool] = {
        # The update's buffers are in its file or stay with the client; a model of one's own is the given one.
        "buffers": True,
        "own model": True,
        "labels": given.labels is not None,
        "local training": local is not None,
        "template": pictures.averaged is not None,
        "public images": pictures.public is not None,
        "generator": given.generator is not None,
    }
    return frozenset(item for item, is_known in known.items() if is_known)


def _notes(
    given: Given,
    attacks: dict[str, AttackSettings],
    knowledge: frozenset[Knowledge],
    normalisation: Normalisation,
    config: RunConfig,
) -> tuple[str, ...]:
    notes = list[str]()
    # Several attacks mostly share a threat model: each is spoken of once.
    for name in dict.fromkeys(attack.threat_model for attack in attacks.values()):
        granted = threat_model(name).granted
        missing = sorted(granted - knowledge)
        if missing:
            notes.append(
                f"The {name} would be granted {', '.join(missing)} too; that was not given, so that attacks are weaker "
                "than this attacker could be."
            )
        ignored = sorted(knowledge - granted - {"buffers", "own model"})
        if ignored:
            notes.append(f"Given and not used, since the {name} is not granted it: {', '.join(ignored)}.")
    if config.data.mean is None or config.data.std is None:
        means, deviations = (
            ", ".join(f"{value:.3f}" for value in values) for values in (normalisation.mean, normalisation.std)
        )
        source = "--public" if given.template is None else "--template"
        notes.append(f"The normalisation was measured on {source}: mean {means}, standard deviation {deviations}.")
    return tuple(notes)


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

"""An update file from anywhere as a case: what is not given is what no attacker is granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.observation import LocalTraining, Observation, observe
from shadow_defense.attacks.threat_model import Knowledge, threat_model
from shadow_defense.config import RunConfig, load_config
from shadow_defense.data.dataset import ImageSet, Normalisation, measure_normalisation
from shadow_defense.data.images import IMAGE_SUFFIXES, decode_file
from shadow_defense.data.public import read_public_images
from shadow_defense.errors import ConfigError, UpdateError
from shadow_defense.experiment.audit.case import Case, Gallery, chosen_attacks, cut_to_given
from shadow_defense.experiment.audit.plausibility import check_length, check_update
from shadow_defense.experiment.audit.public_images import read_labelled_images, without_own
from shadow_defense.experiment.audit.reading import read_global_state, read_named_tensors, read_update, update_between
from shadow_defense.experiment.audit.told import Told, told_in, told_training, with_told
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.generators.build import load_generator
from shadow_defense.models.build import build_model
from shadow_defense.seeds import seed_for

MOST_IMAGES = 10_000
"""Images that an attack rebuilds together: it holds all of them in memory."""


@dataclass(frozen=True)
class Given:
    """What the command line was given; None: not given.

    Attributes:
        model: preset or YAML file whose ``model`` and ``data`` say what was trained.
        before: the global model before the round.
        after: the client's model after it, in place of ``update``.
        training: what else was told of the local training, by the settings' names.
        public: images with labels; their mean is the template where none is given.
    """

    model: str
    overrides: tuple[str, ...] = ()
    update: Path | None = None
    before: Path | None = None
    after: Path | None = None
    attacks: tuple[str, ...] = ("inverting-gradients",)
    threat_model: str | None = None
    iterations: int | None = None
    labels: tuple[int, ...] | None = None
    samples: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    template: Path | None = None
    public: str | None = None
    generator: Path | None = None
    truth: str | None = None
    gallery: str | None = None


def case_of_update(given: Given) -> Case:
    """The case of an update file.

    Raises:
        ShadowDefenseError: of one line, for files that cannot be read, do not fit the model, or contradict each other.
        ThreatModelError: for an attack that reads what was not given; the line names the flag.
    """
    config = with_told(load_config(given.model, given.overrides), given.training)
    attacks = chosen_attacks(config, given.attacks, given.threat_model, given.iterations)
    side = config.data.image_size
    if side is None:
        raise ConfigError("the images' size is not known: set data.image_size, such as --set data.image_size=32")
    before = given.before or config.model.start
    if before is None:
        raise UpdateError("the global model before the round is not known: give --global (or --before) FILE")
    channels, classes = _sizes(config, before)
    model = build_model(config.model, channels=channels, classes=classes, image_size=(side, side), seed=config.seed)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    notes = list[str]()
    state = read_global_state(before, model, notes)
    model.load_state_dict(state)
    update = _update(given, model, state, notes)
    file = str(given.update or given.after)
    # A smoothed label gives every class a share.
    present = classes if config.training.label_smoothing else len(set(given.labels or ())) or update.samples
    check_update(update.tensors, state, fresh, model, what=file, present=present)
    told = told_in(config.training)
    local = told_training(
        config.training, update, learning_rate=given.learning_rate, steps=given.steps, batch_size=given.batch_size
    )
    if local is not None and told == Told("sgd", "ce"):
        check_length(update.tensors, model, local, file)
    truths = None if given.truth is None else _images(given.truth, side, channels)
    public = _public(given, config, side, channels, classes, truths)
    template = _template(given, public, side, channels)
    normalisation = _normalisation(config, template, channels)
    known = _known(given, local)
    labels = torch.tensor(given.labels or (), dtype=torch.int64)
    if ((labels < 0) | (labels >= classes)).any():
        raise ConfigError(f"--labels {','.join(map(str, given.labels or ()))}: expected 0 to {classes - 1}")
    # Before anything is tried: hours of one attack should not end in the refusal of the next.
    threats = {
        name: cut_to_given(threat_model(attack.threat_model), known, attack.build().needs, name)
        for name, attack in attacks.items()
    }
    blank = torch.full((channels, side, side), 0.5)
    mean_image = None if template is None else template.float().mean(0) / 255

    def observation(attack: str) -> Observation:
        return observe(
            threats[attack],
            model=model,
            loss_fn=config.training.loss_function(),
            global_state=state,
            update=update,
            image_shape=(channels, side, side),
            classes=classes,
            normalisation=normalisation,
            labels=labels,
            # Never granted where it is not given.
            local_training=local or LocalTraining(1.0, update.samples, 1, config.training.batch_norm),
            template=blank if mean_image is None else mean_image,
            generator=None if given.generator is None else partial(load_generator, given.generator),
            public=public,
            optimiser=told.optimiser
            if "local training" in threat_model(attacks[attack].threat_model).granted
            else None,
        )

    gallery = None if given.gallery is None else _gallery(_images(given.gallery, side, channels), truths)
    return Case(
        name=f"the update in {file}",
        subject={"update": file, "global": str(before), "model": given.model, "samples": update.samples},
        config=config,
        attacks=attacks,
        observe=observation,
        seed=lambda attack: seed_for(config.seed, "audit", attack),
        local_training=local,
        told=told,
        truths=None if truths is None else truths.float() / 255,
        template=mean_image,
        gallery=gallery,
        notes=(*_notes(given, attacks, known, normalisation, config), *notes),
    )


def _sizes(config: RunConfig, state_file: Path) -> tuple[int, int]:
    """Channels and classes: as configured, else read off the state's first convolution and last linear layer."""
    channels: int | None = config.data.channels
    classes = None if config.data.classes is None else len(config.data.classes)
    if channels is None or classes is None:
        tensors = list(read_named_tensors(state_file).values())
        convolutions = [tensor for tensor in tensors if tensor.dim() == 4]
        linear = [tensor for tensor in tensors if tensor.dim() == 2]
        if not convolutions or not linear:
            raise UpdateError(
                f"{state_file} has no convolution and linear layer to read channels and classes from: set "
                "data.channels and data.classes"
            )
        channels, classes = channels or convolutions[0].shape[1], classes or len(linear[-1])
    return channels, classes


def _update(given: Given, model: nn.Module, state: dict[str, Tensor], notes: list[str]) -> ModelUpdate:
    if (given.update is None) == (given.after is None):
        raise UpdateError("expected one of --update (a difference) and --after (the client's state, with --before)")
    samples = given.samples or (len(given.labels) if given.labels else None)
    if given.update is not None:
        update = read_update(given.update, model, state, notes, samples=samples, steps=given.steps)
    else:
        assert given.after is not None
        update = update_between(given.after, model, state, notes, samples=samples, steps=given.steps)
    if update.samples > MOST_IMAGES:
        raise UpdateError(
            f"{update.samples} images are behind the update, it is said: at most {MOST_IMAGES} are rebuilt at once; "
            "audit a client with fewer"
        )
    if given.labels is not None and len(given.labels) != update.samples:
        raise ConfigError(f"--labels names {len(given.labels)} labels for {update.samples} images: give one an image")
    return update


def _known(given: Given, local: LocalTraining | None) -> frozenset[Knowledge]:
    # The update's buffers are in its file or stay with the client; a model of one's own is the model that was given.
    known: set[Knowledge] = {"buffers", "own model"}
    if given.labels is not None:
        known.add("labels")
    if local is not None:
        known.add("local training")
    if given.template is not None or given.public is not None:
        known.add("template")
    if given.public is not None:
        known.add("public images")
    if given.generator is not None:
        known.add("generator")
    return frozenset(known)


def _images(where: str, side: int, channels: int) -> UInt8[Tensor, "n c h w"]:
    """One image file, or all that :func:`read_public_images` reads."""
    path = Path(where)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return decode_file(path, side, channels)
    return read_public_images(where, image_size=side, channels=channels, limit=None, seed=0)


def _public(
    given: Given, config: RunConfig, side: int, channels: int, classes: int, truths: UInt8[Tensor, "n c h w"] | None
) -> ImageSet | None:
    if given.public is None:
        return None
    images = read_labelled_images(
        given.public, image_size=side, channels=channels, classes=classes, class_names=config.data.classes
    )
    return images if truths is None else without_own(images, truths)


def _template(given: Given, public: ImageSet | None, side: int, channels: int) -> UInt8[Tensor, "n c h w"] | None:
    if given.template is not None:
        return _images(str(given.template), side, channels)
    return None if public is None else public.images


def _normalisation(config: RunConfig, template: UInt8[Tensor, "n c h w"] | None, channels: int) -> Normalisation:
    mean, std = config.data.mean, config.data.std
    if mean is not None and std is not None:
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ConfigError(
                f"data.mean {list(mean)} and data.std {list(std)}: expected {channels} numbers each, those of std "
                "above 0"
            )
        return Normalisation(mean, std)
    if template is None or len(template) < 2:
        raise ConfigError(
            "how images are normalised is not known: give --set data.mean=[0.5] --set data.std=[0.25], one number a "
            "channel, or the public images that it was measured on as --template or --public FOLDER"
        )
    names = tuple(map(str, range(len(template))))
    return measure_normalisation(ImageSet(template, torch.zeros(len(template), dtype=torch.int64), names))


def _gallery(images: UInt8[Tensor, "n c h w"], truths: UInt8[Tensor, "m c h w"] | None) -> Gallery:
    """The gallery without the client's own images: those are known exactly."""
    if truths is None:
        raise ConfigError("--gallery asks whether the client's own images are found among others: give --truth too")
    own = {image.numpy().tobytes() for image in truths}
    others = [image for image in images if image.numpy().tobytes() not in own]
    if not others:
        raise ConfigError("--gallery holds nothing but the images of --truth: add images of others")
    return Gallery(truths.float() / 255, _unit(others))


def _unit(images: list[Tensor]) -> Float[Tensor, "n c h w"]:
    return torch.stack(images).float() / 255


def _notes(
    given: Given,
    attacks: dict[str, AttackSettings],
    known: frozenset[Knowledge],
    normalisation: Normalisation,
    config: RunConfig,
) -> tuple[str, ...]:
    notes = list[str]()
    # Several attacks mostly share a threat model: each is spoken of once.
    for name in dict.fromkeys(attack.threat_model for attack in attacks.values()):
        granted = threat_model(name).granted
        missing = sorted(granted - known)
        if missing:
            notes.append(
                f"The {name} would be granted {', '.join(missing)} too; that was not given, so that attacks are weaker "
                "than this attacker could be."
            )
        ignored = sorted(known - granted - {"buffers", "own model"})
        if ignored:
            notes.append(f"Given and not used, since the {name} is not granted it: {', '.join(ignored)}.")
    if config.data.mean is None or config.data.std is None:
        means, deviations = (
            ", ".join(f"{value:.3f}" for value in values) for values in (normalisation.mean, normalisation.std)
        )
        source = "--public" if given.template is None else "--template"
        notes.append(f"The normalisation was measured on {source}: mean {means}, standard deviation {deviations}.")
    return tuple(notes)

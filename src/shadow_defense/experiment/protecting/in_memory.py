"""Protecting what a Python program holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.errors import DataError
from shadow_defense.experiment.protecting.auditing import audit_protection
from shadow_defense.experiment.protecting.building import site_constants
from shadow_defense.experiment.protecting.certificate import Certificate, Origin, certificate_of, example_of
from shadow_defense.experiment.protecting.folder import site_secret
from shadow_defense.experiment.protecting.given_images import ProtectedDataset, read_given, read_items
from shadow_defense.experiment.protecting.knowledge import PublicImages, read_public
from shadow_defense.experiment.protecting.material import Material, checked
from shadow_defense.experiment.protecting.networks import Networks, check_networks
from shadow_defense.experiment.protecting.settings import protect_preset, targets_of
from shadow_defense.generators.build import load_generator
from shadow_defense.generators.interface import Generator, as_generator, private_copy
from shadow_defense.progress import Progress
from shadow_defense.protection.building import freeze
from shadow_defense.protection.directions import Classifier, train_public_classifier
from shadow_defense.protection.public_network import PublicNetwork


def protect(
    images: Any,
    labels: Any = None,
    *,
    public: Any,
    public_labels: Any = None,
    groups: Any = None,
    public_groups: Any = None,
    preset: str = "recommended",
    target: str | None = None,
    generator: str | Path | nn.Module | None = None,
    model: nn.Module | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> tuple[Any, Certificate]:
    """``images`` protected once and for all, and what an attacker can make of them at most (docs/protect.md).

    The same images under the same settings are the same x' for ever: draws come from the site's secret, which lies
    below ``SHADOW_DEFENSE_STATE``.

    Args:
        images: an array or a tensor, (n, h, w), (n, c, h, w) or (n, h, w, c), of bytes or floats in [0, 1]; or a
            torch data set of such images or pictures, alone or before a label. It comes back as the same kind; a
            data set's images are protected when they are first asked for. Random transforms go behind it.
        labels: n classes, which the attacker is granted; a data set brings its own.
        public: what the attacker may know: as ``images``, or a path as the command takes it. None of the images.
        public_labels: of ``public``; the preset ``recommended`` needs them.
        groups: n patients, and ``public_groups`` those of the public images: both are needed for a verifier that looks
            for other images of the same patient.
        generator: of decoys, in place of public images: a module from codes to images in [-1, 1], or its file. Nothing
            of ``images`` may have gone into its training: the attacker has it.
        model: what tells the classes of the public images in place of labels, or whose directions are spared: from
            images in [0, 1] to logits, where it lies. What it was trained on the certificate does not count.
        settings: of :class:`~shadow_defense.experiment.protecting.settings.ProtectSettings`, in place of the preset's.

    Raises:
        ConfigError: for an unknown preset or setting, or a target that nothing reaches.
        DataError: when images cannot be used, are too few, or stand on both sides.
        RunError: where the site's secret cannot be read or kept.
    """
    chosen = protect_preset(preset, **settings)
    targets, quiet = targets_of(preset, target, settings), progress or Progress()
    dataset = not isinstance(images, np.ndarray | Tensor)
    if dataset and labels is not None:
        raise DataError("a data set brings its labels with its items: leave labels out")
    if dataset:
        pixels, behind = read_items(images)
        labels = behind if any(each is not None for each in behind) else None
    else:
        given = read_given(images)
        pixels = given.images
    count = len(pixels)
    private = ImageSet(
        pixels,
        torch.zeros(count).long() if labels is None else _classes(labels, count, "labels"),
        tuple(str(place) for place in range(count)),
        None if groups is None else tuple(str(each) for each in groups),
    )
    known = _public(public, public_labels, private, chosen.seed)
    if public_groups is not None:
        if len(public_groups) != len(known.images):
            raise DataError(
                f"{len(public_groups)} public_groups of {len(known.images)} public images: give one an image"
            )
        known = replace(known, groups=tuple(str(each) for each in public_groups))
    material = checked(Material(private, known, 0, count))
    networks = _networks(generator, model, private.channels)
    check_networks(networks, chosen, tuple(pixels.shape[1:]))
    constants = site_constants(chosen, targets, known, count, quiet, networks)
    chosen = chosen.model_copy(update={"strength": constants.strength})
    frozen = freeze(chosen, constants, known.images, site_secret(), networks.generator)
    knowledge = known.knowledge(chosen.device)
    audited = audit_protection(frozen, knowledge, private, chosen, quiet)
    marks = {"texture": frozen.fingerprint, **networks.marks()}
    origin = Origin(f"Certificate of {count} images", "shadow_defense.protect", targets, 0, marks, networks.notes())
    record = certificate_of(material, chosen, audited, origin, mapped=frozen.texture.maps)
    example = example_of(frozen.texture, knowledge, chosen.seed)
    certificate = Certificate(record, frozen.texture.module(), example)
    return (ProtectedDataset(images, frozen) if dataset else given.like(frozen.trained_on(pixels))), certificate


def public_network(public: Any, public_labels: Any = None, *, seed: int = 0) -> nn.Module:
    """A small network of the public images alone, to answer beside a federated model (:func:`answer_together`).

    What a model of protected images knows beyond public ones shows where both answer (docs/protect.md).

    Args:
        public: images as :func:`protect` takes them, but for a path.
        public_labels: n classes; a data set brings its own.

    Returns:
        A module from images in [0, 1] to logits, in eval mode.

    Raises:
        DataError: for images that cannot be used, or without labels of two classes.
    """
    images, labels = _with_labels(public, public_labels)
    if labels is None:
        raise DataError("the public images have no labels: give public_labels, one class an image")
    return PublicNetwork(train_public_classifier(images, labels, seed=seed, moved=True)).eval()


def _networks(generator: str | Path | nn.Module | None, model: nn.Module | None, channels: int) -> Networks:
    if isinstance(generator, str | Path):
        decoys: Generator | None = load_generator(Path(generator))
    else:
        decoys = None if generator is None else as_generator(private_copy(generator))
    return Networks(decoys, None if model is None else Classifier(model, Normalisation.none(channels)))


def _public(public: Any, labels: Any, like: ImageSet, seed: int) -> PublicImages:
    if isinstance(public, str | Path):
        if labels is not None:
            raise DataError("public_labels go with an array: a path brings its own; leave them out")
        return read_public(str(public), like, seed)
    images, told = _with_labels(public, labels)
    if images.shape[1:] != like.images.shape[1:]:
        raise DataError(
            f"public images are {tuple(images.shape[1:])} (channels, height, width), the others "
            f"{tuple(like.images.shape[1:])}: bring them to one size"
        )
    return PublicImages(images, told, 1 if told is None else int(told.max()) + 1)


def _with_labels(public: Any, labels: Any) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"] | None]:
    if isinstance(public, np.ndarray | Tensor):
        images = read_given(public, "public images").images
    else:
        images, behind = read_items(public)
        labels = behind if labels is None and any(each is not None for each in behind) else labels
    return images, None if labels is None else _classes(labels, len(images), "public_labels")


def _classes(labels: Any, count: int, what: str) -> Int64[Tensor, " n"]:
    values = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.dtype.kind not in "iub" or flat.shape != (count,) or (flat < 0).any():
        raise DataError(
            f"{what}: {flat.dtype} of shape {flat.shape}: expected {count} classes, whole numbers from 0, one an image"
        )
    return torch.from_numpy(flat.astype(np.int64))

"""The whole command: read, take public images, draw the texture, write the protected set, attack it, certify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.errors import ConfigError
from shadow_defense.experiment.protecting.auditing import audit_protection
from shadow_defense.experiment.protecting.building import site_constants
from shadow_defense.experiment.protecting.certificate import Origin, certificate_of, example_of, write_certificate
from shadow_defense.experiment.protecting.folder import (
    CERTIFICATE,
    CONSTANTS,
    GENERATOR,
    HINT,
    PAGE,
    claim,
    site_secret,
    write_transform,
)
from shadow_defense.experiment.protecting.forecast import Tell, forecast
from shadow_defense.experiment.protecting.layouts import Chunks, Layout
from shadow_defense.experiment.protecting.material import CHOOSING, Material, Request, read_material
from shadow_defense.experiment.protecting.networks import check_networks, read_networks
from shadow_defense.experiment.protecting.pairing import read_earlier
from shadow_defense.files import atomic_path, read_json
from shadow_defense.progress import Progress
from shadow_defense.protection.building import freeze
from shadow_defense.protection.constants import hash_of, read_constants, write_constants
from shadow_defense.protection.frozen import AT_ONCE, FrozenProtection
from shadow_defense.protection.task import Task


def protect_data(
    request: Request, out: Path, *, command: str, progress: Progress, tell: Tell | None = None
) -> dict[str, Any]:
    """Write the protected data set and its certificate into ``out``, whose lock is held; returns the certificate.

    A protection that was stopped goes on where it was; one that is done is told again.

    Args:
        tell: is told how long it will take, before it begins.

    Raises:
        ConfigError: where not one of the ways to public images is given, or a network that is of no use.
        GeneratorError, ModelError: for a network that cannot be used on these images.
        DataError: when images cannot be used, are too few, or stand on both sides.
        RunError: when ``out`` holds anything else.
    """
    layout, kept, material = read_material(request)
    settings, public = request.settings, material.public
    classes, knowledge = len(layout.parts.class_names), public.knowledge(settings.device)
    networks = read_networks(request.generator, request.model, public.images, classes, knowledge.device)
    if request.trained_on is not None and request.model is None:
        raise ConfigError("--trained-on says what the model of --model was trained on: give both")
    check_networks(networks, settings, tuple(material.private.images.shape[1:]))
    secret, before = site_secret(out), None
    if request.trained_on is not None:
        before = read_earlier(request.trained_on, material.private, public, secret)
    claim(
        out,
        {
            "settings": settings.model_dump(mode="json"),
            "targets": [str(target) for target in request.targets],
            **{name: getattr(request, name) for name in CHOOSING},
            "private": hash_of(material.private.images, material.private.labels),
            "public": hash_of(public.images, public.labels),
            **networks.marks(),
            "trained_on": None if before is None else before.fingerprint,
        },
    )
    if (out / CERTIFICATE).exists() and (out / PAGE).exists():
        done: dict[str, Any] = read_json(out / CERTIFICATE)
        return done
    kept_here = read_constants(out / CONSTANTS, HINT)
    if tell is not None:
        taught = networks.classifier is not None and settings.texture == "features"
        trained = taught or (networks.classifier is None and settings.spares and public.labels is not None)
        tell(forecast(public, settings, classifier=trained and kept_here is None))
    constants = kept_here or site_constants(
        settings, request.targets, public, material.whole, progress, networks, before
    )
    write_constants(out / CONSTANTS, constants)
    if request.generator is not None and not (out / GENERATOR).exists():
        with atomic_path(out / GENERATOR) as temporary:
            shutil.copyfile(request.generator, temporary)
    settings = settings.model_copy(update={"strength": constants.strength})
    frozen = freeze(settings, constants, public.images, secret, networks.generator)
    _write(out, layout, kept, material, frozen, progress)
    audited = audit_protection(frozen, knowledge, material.private, settings, progress, before)
    passed = sum(len(each) for name, each in layout.sets().items() if name not in ("train", "public"))
    marks = {"texture": frozen.fingerprint, **networks.marks()}
    origin = Origin(
        f"Certificate of {layout.title}", command, request.targets, passed, marks, networks.notes(before is not None)
    )
    record = certificate_of(material, settings, audited, origin, mapped=frozen.texture.maps)
    return write_certificate(out, record, example_of(frozen.texture, knowledge, settings.seed))


def _write(
    out: Path, layout: Layout, kept: list[int], material: Material, frozen: FrozenProtection, progress: Progress
) -> None:
    if isinstance(frozen.texture, Task):
        write_transform(out, frozen.texture)
    task = progress.start("protecting images", len(material.private))

    def protected(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        task.advance(len(images))
        return frozen.trained_on(images)

    pictures = {name: _chunks(each.images, frozen.tested_on) for name, each in layout.sets().items()}
    if layout.parts.public is not None:
        pictures["public"] = _chunks(layout.parts.public.images, lambda images: images.float() / 255)
    layout.write(out, pictures | {"train": _chunks(material.private.images, protected)}, kept)
    task.finish()


def _chunks(images: UInt8[Tensor, "n c h w"], made: Callable[[Tensor], Tensor]) -> Chunks:
    return (made(part) for part in images.split(AT_ONCE))

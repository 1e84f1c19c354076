"""The whole command: read, take public images, draw the texture, write the protected set, attack it, certify."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.attacks.removers.suite import Knowledge
from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import ConfigError, DataError
from shadow_defense.experiment.protecting.auditing import Audited, audit_protection, protected_images
from shadow_defense.experiment.protecting.building import build_texture, fingerprint, spared_directions
from shadow_defense.experiment.protecting.example import example_of
from shadow_defense.experiment.protecting.folder import (
    CERTIFICATE,
    PAGE,
    Constants,
    claim,
    hash_of,
    read_constants,
    write_constants,
)
from shadow_defense.experiment.protecting.knowledge import PublicImages, cut_public, read_public, refuse_private
from shadow_defense.experiment.protecting.layouts import Layout, read_layout
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.experiment.protecting.site import site_secret
from shadow_defense.experiment.protecting.transform import write_transform
from shadow_defense.experiment.protecting.weakest import weakest_strength
from shadow_defense.experiment.provenance import versions
from shadow_defense.files import read_json, write_json, write_text
from shadow_defense.progress import Progress
from shadow_defense.protection.task import Task
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.whitening import measure_whitening
from shadow_defense.report.pages.certificate import render_certificate
from shadow_defense.report.records.certificate import CertificateRecord, Counts
from shadow_defense.report.sentences.certificate import certificate_verdict
from shadow_defense.seeds import named_generator

LEAST_PRIVATE = 20
"""Images below which an interval over them says next to nothing."""


@dataclass(frozen=True)
class Request:
    """What is asked of the command; either ``public`` or ``aside`` is given.

    Attributes:
        aside: a count of training images, or a share below 1, that become public.
        target: RDLV that the linear removal may reach on average; None: the settings' strength.
        limit: so many training images are protected at most.
    """

    images: Path
    public: str | None
    aside: float | None
    settings: ProtectSettings
    target: float | None
    limit: int | None
    image_size: int | None


@dataclass(frozen=True)
class _Material:
    """The data set, the places of the training images to protect, those images, and what the attacker may have."""

    layout: Layout
    kept: list[int]
    private: ImageSet
    public: PublicImages
    spent: int


def protect_data(request: Request, out: Path, *, command: str, progress: Progress) -> dict[str, Any]:
    """Write the protected data set and its certificate into ``out``, whose lock is held; returns the certificate.

    A protection that was stopped goes on where it was; one that is done is told again.

    Raises:
        ConfigError: when both or none of the ways to public images is given.
        DataError: when images cannot be used, are too few, or stand on both sides.
        RunError: when ``out`` holds anything else.
    """
    if (request.public is None) == (request.aside is None):
        raise ConfigError("protect needs to know what the attacker may know: give either --public or --set-aside")
    material = _read(request)
    settings = request.settings
    asked = {
        "settings": settings.model_dump(mode="json"),
        "target": request.target,
        "private": hash_of(material.private.images, material.private.labels),
        "public": hash_of(material.public.images, material.public.labels),
    }
    claim(out, asked)
    if (out / CERTIFICATE).exists() and (out / PAGE).exists():
        done: dict[str, Any] = read_json(out / CERTIFICATE)
        return done
    secret = site_secret(out)
    constants = read_constants(out)
    if constants is None:
        constants = _constants(request, material.public, progress)
        write_constants(out, constants)
    settings = settings.model_copy(update={"strength": constants.strength})
    texture = build_texture(settings, constants.whitening, material.public, constants.spared)
    mark = fingerprint(settings, constants.tensors() | _drawn_from(settings, material.public))
    _write(out, material, texture, settings, secret, mark, progress)
    knowledge = _knowledge(material.public)
    audited = audit_protection(texture, knowledge, material.private, settings, secret, mark, progress)
    record = _record(material, settings, request, audited, mark, command)
    # The page first: where the record is, all of it is there.
    write_text(out / PAGE, render_certificate(record, example_of(texture, knowledge, settings.seed)))
    written = asdict(record) | _numbers(audited)
    write_json(out / CERTIFICATE, written)
    return written


def _read(request: Request) -> _Material:
    layout = read_layout(request.images, request.image_size)
    train, seed = layout.parts.train, request.settings.seed
    kept, spent = list(range(len(train))), 0
    if request.aside is not None:
        kept, public = cut_public(train, request.aside, len(layout.parts.class_names), seed)
        spent = len(train) - len(kept)
    else:
        assert request.public is not None
        public = read_public(request.public, train, seed)
    if request.limit is not None and request.limit < len(kept):
        order = torch.randperm(len(kept), generator=named_generator(seed, "protect", "limit"))
        kept = [kept[place] for place in order[: request.limit].sort().values.tolist()]
    private = train.subset(kept)
    if len(private) < LEAST_PRIVATE:
        raise DataError(
            f"{len(private)} images to protect: expected at least {LEAST_PRIVATE} to put an interval round what was "
            "measured; give more, or set less aside"
        )
    refuse_private(public, private.images)
    return _Material(layout, kept, private, public, spent)


def _constants(request: Request, public: PublicImages, progress: Progress) -> Constants:
    settings, unit = request.settings, public.images.float() / 255
    whitening = measure_whitening(unit)
    spared = spared_directions(settings, whitening, public, progress) if settings.texture == "task" else None
    if request.target is None:
        return Constants(whitening, spared, settings.strength)
    if settings.texture == "decoy":
        raise ConfigError("--target has no strength to choose in a decoy: leave it out, or take another --preset")

    def make(strength: float) -> Texture:
        return build_texture(settings.model_copy(update={"strength": strength}), whitening, public, spared)

    return Constants(whitening, spared, weakest_strength(make, unit, request.target))


def _drawn_from(settings: ProtectSettings, public: PublicImages) -> dict[str, Tensor]:
    return {"pool": public.images} if settings.texture == "decoy" else {}


def _write(
    out: Path,
    material: _Material,
    texture: Texture,
    settings: ProtectSettings,
    secret: int,
    mark: str,
    progress: Progress,
) -> None:
    task = progress.start("protecting images", len(material.private))
    protected = protected_images(texture, material.private.images, secret, mark)
    images = {name: each.images for name, each in material.layout.sets().items()}
    if isinstance(texture, Task):
        write_transform(out, texture)
        protected = texture.removal(protected)
        images = {name: as_bytes(texture.removal(each.float() / 255)) for name, each in images.items()}
    material.layout.write(out, {**images, "train": as_bytes(protected)}, material.kept)
    task.advance(len(material.private))
    task.finish()


def as_bytes(images: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Images as they are written: clipped to [0, 1] and rounded to 8 bits, which tells no more of them."""
    return (images.clamp(0, 1) * 255).round().byte()


def _knowledge(public: PublicImages) -> Knowledge:
    labels = torch.zeros(len(public.images)).long() if public.labels is None else public.labels
    return Knowledge(public.images.float() / 255, labels, public.classes)


def _record(
    material: _Material, settings: ProtectSettings, request: Request, audited: Audited, mark: str, command: str
) -> CertificateRecord:
    sets = material.layout.sets()
    return CertificateRecord(
        title=f"Certificate of {request.images.name}",
        created=datetime.date.today().isoformat(),
        command=command,
        versions=versions(),
        seed=settings.seed,
        verdict=certificate_verdict(audited.planted_breaks, audited.worst, audited.mean_image, audited.linkage),
        settings=settings.model_dump(mode="json"),
        target=request.target,
        counts=Counts(
            protected=len(material.private),
            audited=min(settings.audited, len(material.private)),
            public=len(material.public.images),
            spent=material.spent,
            passed=sum(len(each) for name, each in sets.items() if name != "train"),
        ),
        removal_written=settings.trains_on_removal,
        hashes={
            "private": hash_of(material.private.images, material.private.labels),
            "public": hash_of(material.public.images, material.public.labels),
            "texture": mark,
        },
        planted_breaks=dict(audited.planted_breaks),
        removers=audited.removers,
        worst=audited.worst,
        hindsight=audited.hindsight,
        mean_image=audited.mean_image,
        linkage=audited.linkage,
        floor=audited.floor,
    )


def _numbers(audited: Audited) -> dict[str, Any]:
    """Each number as mean, low, high and count; null for what is withheld."""
    tables = {name: getattr(audited, name) for name in ("worst", "hindsight", "mean_image", "linkage", "floor")}
    return {
        name: {metric: value.as_record() for metric, value in each.items()} or None for name, each in tables.items()
    } | {
        "removers": {
            name: {metric: value.as_record() for metric, value in each.items()}
            for name, each in audited.removers.items()
        }
    }

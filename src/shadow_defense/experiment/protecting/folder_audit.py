"""The audit of a folder that was protected, here or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from shadow_defense.attacks.removers.suite import breaks_unknown_noise
from shadow_defense.attacks.removers.unknown import learned_from_halves
from shadow_defense.attacks.removers.worst_case import distances, found_again, in_hindsight, scores
from shadow_defense.errors import DataError, shown
from shadow_defense.experiment.protecting.auditing import audit_images, audited_places, measured
from shadow_defense.experiment.protecting.building import choose_constants
from shadow_defense.experiment.protecting.certificate import Origin, certificate_of, example_of, write_certificate
from shadow_defense.experiment.protecting.folder import ASKED, read_finished
from shadow_defense.experiment.protecting.forecast import Tell, forecast
from shadow_defense.experiment.protecting.material import CHOOSING, Material, Request, read_material
from shadow_defense.experiment.protecting.pairing import paired, read_protected
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.metrics.psnr import psnr
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture, fingerprint
from shadow_defense.protection.constants import hash_of
from shadow_defense.protection.decoy import Decoy
from shadow_defense.protection.texture import Texture
from shadow_defense.protection.written import Written
from shadow_defense.report.records.certificate import Audited

UNKNOWN = (
    "Nobody said how these images were protected: what is made of them here is made without it, and who knows it may "
    "make more. The learned remover had the pairs of one half and attacked the other."
)

LATER_ALONE = (
    "A model was trained on an earlier protection of these images, of which the attacker has seen something too: this "
    "audit had the later one alone, the certificate in the folder has both."
)


@dataclass(frozen=True)
class FolderRequest:
    """What is asked of the audit.

    Attributes:
        truth: the clean images, as they were given when these were protected.
        public: None where they were set aside from ``truth``.
        settings: of the audit; those of the texture count where ``told``.
        told: whether the settings say how the images were protected.
    """

    protected: Path
    truth: str
    public: str | None
    settings: ProtectSettings
    told: bool


def audit_folder(
    request: FolderRequest, out: Path, *, command: str, progress: Progress, tell: Tell | None = None
) -> dict[str, Any]:
    """Attack a protected folder and write certificate.json and certificate.html into ``out``; returns the record.

    A folder that this package wrote says how it was made, and of which images.

    Args:
        tell: is told how long it will take, before it begins.

    Raises:
        DataError: for another ``truth`` than the images were made of, or what cannot be used.
        RunError: for a damaged folder.
    """
    title = f"Audit of {request.protected.name}"
    texture: Texture | None
    mark: str | None
    if (request.protected / ASKED).exists():
        material, texture, settings, mark, notes = _of_own_making(request)
    else:
        material, settings, mark = _of_others(request), request.settings, None
        texture = _told(settings, material, progress) if request.told else None
        notes = () if texture is not None else (UNKNOWN,)
    written = paired(read_protected(request.protected, settings.seed), material.private)
    origin = Origin(title, command, (), 0, {"texture": mark}, notes)
    if tell is not None:
        tell(forecast(material.public, settings, classifier=False))
    if texture is None:
        audited = _audit_unknown(written, material, settings, progress)
        return write_certificate(out, certificate_of(material, settings, audited, origin, mapped=False), None)
    knowledge = material.public.knowledge(settings.device)
    # Decoys have removers of their own, which see through clipping by themselves.
    seen = texture if isinstance(texture, Decoy) else Written(texture, knowledge.images)
    places = audited_places(len(material.private), settings)
    audited = audit_images(
        texture, seen, written[places].float() / 255, places, knowledge, material.private, settings, progress
    )
    record = certificate_of(material, settings, audited, origin, mapped=texture.maps)
    return write_certificate(out, record, example_of(seen, knowledge, settings.seed))


def _of_own_making(request: FolderRequest) -> tuple[Material, Texture, ProtectSettings, str, tuple[str, ...]]:
    if request.told:
        raise DataError(f"{request.protected} says itself how it was protected: leave --texture out")
    asked, settings, constants, generator = read_finished(request.protected, "--protected")
    audit = {name: getattr(request.settings, name) for name in ("audited", "remover_steps", "device")}
    settings = settings.model_copy(update=audit)
    if asked["aside"] is not None and request.public is not None:
        raise DataError("the public images were set aside from --truth: leave --public out")
    given = {name: asked[name] for name in CHOOSING}
    _, _, material = read_material(Request(images=request.truth, settings=settings, public=request.public, **given))
    if hash_of(material.private.images, material.private.labels) != asked["private"]:
        raise DataError(f"{shown(request.truth)} is not what {request.protected} was made of: give that as --truth")
    public = material.public
    if settings.texture == "decoy" and hash_of(public.images, public.labels) != asked["public"]:
        raise DataError("the decoys were drawn from other public images: give those as --public")
    of = (settings, constants, public.images, generator)
    notes = () if asked.get("trained_on") is None else (LATER_ALONE,)
    return material, build_texture(*of), settings, fingerprint(*of), notes


def _of_others(request: FolderRequest) -> Material:
    if request.public is None:
        raise DataError("the audit needs to know what the attacker may know: give --public")
    height, width = read_protected(request.protected, request.settings.seed).parts.train.image_size
    side = height if height == width else None
    plain = Request(request.truth, request.settings, public=request.public, image_size=side)
    return read_material(plain)[2]


def _told(settings: ProtectSettings, material: Material, progress: Progress) -> Texture:
    if settings.spares:
        raise DataError(
            f"what texture {settings.texture} spares stands in the folder that `protect` wrote: audit that, or leave "
            "--texture out"
        )
    constants = choose_constants(settings, (), material.public, len(material.private), progress)
    return build_texture(settings, constants, material.public.images)


def _audit_unknown(
    written: UInt8[Tensor, "n c h w"], material: Material, settings: ProtectSettings, progress: Progress
) -> Audited:
    knowledge, private, seed, steps = (
        material.public.knowledge(settings.device),
        material.private,
        settings.seed,
        settings.remover_steps,
    )
    places = audited_places(len(private), settings)
    protected, truths = written[places].float() / 255, private.images[places].float() / 255
    labels, classes = private.labels[places], int(private.labels.max()) + 1
    broken = breaks_unknown_noise(knowledge, seed=seed, steps=steps, progress=progress)
    learned = learned_from_halves(
        protected, truths, labels, classes, seed=seed, steps=steps, progress=progress, device=knowledge.device
    )
    made = {"as given": protected, "learned": learned}
    mean = knowledge.images.double().mean(dim=0).float()
    tables = {name: scores(estimates, truths, mean) for name, estimates in made.items()}
    # Which of the two to believe for a half the other half's truths tell.
    even = torch.arange(len(truths)) % 2 == 0
    believed = torch.zeros_like(truths)
    for own in (even, ~even):
        best = max(made.values(), key=lambda each: float(psnr(each[~own], truths[~own]).mean()))
        believed[own] = best[own]
    ways = distances(made.values(), private.unit_images())
    return Audited(
        planted_breaks={"sparse noise": broken},
        removers={name: measured(each) for name, each in tables.items()},
        worst=measured(scores(believed, truths, mean)) if broken else {},
        hindsight=measured(in_hindsight(list(tables.values()))) if broken else {},
        mean_image=measured(scores(mean.expand_as(truths), truths, mean)),
        linkage=measured(found_again(ways, places, private.groups)) if broken else {},
        floor={},
    )

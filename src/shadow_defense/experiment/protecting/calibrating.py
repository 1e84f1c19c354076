"""For each texture the weakest strength that meets a target, by linear removers alone, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.data.dataset import FederatedDataset, ImageSet, Parts, concatenated
from shadow_defense.data.images import as_bytes
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.described import made
from shadow_defense.experiment.protecting.building import choose_constants, gallery_for
from shadow_defense.experiment.protecting.knowledge import PublicImages
from shadow_defense.experiment.protecting.settings import PRESETS, ProtectSettings, protect_preset
from shadow_defense.experiment.protecting.utility import worth_of
from shadow_defense.experiment.protecting.weakest import LEAKS
from shadow_defense.files import write_text
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.pareto import pareto_front
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.protection.building import build_texture
from shadow_defense.protection.texture import Texture
from shadow_defense.report.pages.textures import render_textures
from shadow_defense.report.records.reading import write_record
from shadow_defense.report.records.textures import PRIVACY, TextureRow, TexturesRecord
from shadow_defense.report.sentences.certificate import textures_verdict

AROUND = (2 / 3, 1.0, 1.5)
"""Strengths of each texture, in units of the weakest that meets the target: what a laxer or stricter one would cost."""

RECORD, PAGE = "analytic.json", "textures.html"


@dataclass(frozen=True)
class Calibrating:
    """What a calibration of textures works on.

    Attributes:
        parts: whose training images are protected and trained on; the others are tested on.
        device: where models are trained.
    """

    public: PublicImages
    parts: Parts
    target: Limit
    seed: int
    progress: Progress
    device: torch.device = CPU

    @classmethod
    def of(
        cls, dataset: FederatedDataset, target: Limit, seed: int, progress: Progress, device: torch.device
    ) -> Calibrating:
        """With all clients' images together, as one hospital's."""
        train, validation = (
            concatenated([getattr(client, part) for client in dataset.clients]) for part in ("train", "validation")
        )
        parts = Parts(train, validation if len(validation) else None, dataset.test, dataset.class_names)
        return cls(PublicImages.of(dataset.public, dataset.classes), parts, target, seed, progress, device)

    @property
    def gallery(self) -> int:
        """Images among which one is looked for."""
        return gallery_for(len(self.parts.train))

    def rows(self, settings: ProtectSettings, preset: str) -> list[TextureRow]:
        """A texture at :data:`AROUND` its weakest strength. Raises :class:`ConfigError` where none meets the target."""
        public, unit = self.public.images, self.public.images.float() / 255
        constants = choose_constants(settings, (self.target,), self.public, self.gallery, self.progress)
        found = []
        for factor in AROUND:
            strength = constants.strength if factor == 1 else float(f"{factor * constants.strength:.3g}")
            texture = build_texture(settings, replace(constants, strength=strength), public)
            leaks = {measure: leak([texture], unit, self.gallery) for measure, (leak, _) in LEAKS.items()}
            worth = self.worth(texture, f"{preset} {strength:g}")
            row = TextureRow(preset=preset, strength=strength, weakest=factor == 1, leaks=leaks, worth=worth)
            found.append(row)
        return found

    def worth(self, texture: Texture | None, what: str) -> dict[str, float | None]:
        """Of a model that is trained on the images under a texture, as `protect` writes them; None: as they are."""
        parts = self.parts if texture is None else self._protected(texture, what)
        found = worth_of(parts, seed=self.seed, device=self.device)
        return {"f1": found["f1"], "f1_threshold": found["f1_threshold"], "auc": found["auc"]}

    def _protected(self, texture: Texture, what: str) -> Parts:
        train = self.parts.train
        protected = texture.protect(train.unit_images(), drawn(self.seed, what, len(train)))

        def tested(given: ImageSet | None) -> ImageSet | None:
            if given is None or not texture.maps:
                return given
            return replace(given, images=as_bytes(texture.tested(given.unit_images())))

        return replace(
            self.parts,
            train=replace(train, images=as_bytes(texture.mapped(protected))),
            validation=tested(self.parts.validation),
            test=tested(self.parts.test),
        )


def calibrate_textures(work: Calibrating, title: str, command: str) -> TexturesRecord:
    """Every preset of `protect` that has a strength to choose, and the front of all its rows.

    Raises:
        DataError: for public images that say too little, or without test images.
    """
    rows: list[TextureRow] = []
    not_reached = {}
    given = {"seed": work.seed, "device": work.device.type}
    chosen = {name: protect_preset(name, **given) for name in PRESETS if PRESETS[name]["texture"] != "decoy"}
    task = work.progress.start("calibrating textures", len(chosen))
    for name, settings in chosen.items():
        try:
            rows += work.rows(settings, name)
        except ConfigError as error:
            not_reached[name] = str(error)
        task.advance(note=name)
    task.finish()
    front = pareto_front([(-row.leaks[PRIVACY], row.worth["f1"] or 0.0) for row in rows]) if rows else []
    record = TexturesRecord(
        **vars(made(title, command)),
        seed=work.seed,
        target=str(work.target),
        trained=len(work.parts.train),
        public=len(work.public.images),
        clean=work.worth(None, "clean"),
        rows=tuple(replace(row, on_front=mark) for row, mark in zip(rows, front, strict=True)),
        not_reached=not_reached,
    )
    return replace(record, verdict=textures_verdict(record))


def write_textures(folder: Path, record: TexturesRecord) -> None:
    """Write ``analytic.json`` and ``textures.html``."""
    write_record(folder / RECORD, record)
    write_text(folder / PAGE, render_textures(record))

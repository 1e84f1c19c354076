"""The pictures of a run: one patient in three tiles, a contact sheet of all, and what defenses did to the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.recognition import Recognition
from shadow_defense.report.kit.formatting import number
from shadow_defense.report.kit.pictures import Picture, heat_overlay, noise_limit, picture, signed_picture
from shadow_defense.report.records.run import BEST_REMOVER, Explanation, Patient, RunRecord, Sight

TILE, THUMBNAIL = 300, 96
"""Least width of a picture on the first screen and on the contact sheet, in CSS pixels."""


@dataclass(frozen=True)
class Tile:
    """A picture and, of a reconstruction, whether its image can be recognised in it."""

    picture: Picture
    recognition: Recognition | None = None


@dataclass(frozen=True)
class SheetRow:
    """One image, and the closest that any attacker came to it in each arm; None where none was tried."""

    name: str
    class_name: str
    tiles: tuple[Tile | None, ...]


@dataclass(frozen=True)
class NoiseCard:
    """One image in one round and what each arm did to it; ``limit`` is where the noise colours saturate."""

    title: str
    sample_id: str
    original: Picture
    arms: Mapping[str, tuple[Picture, ...]]
    limit: str | None


def hero_tiles(record: RunRecord, patients: Sequence[Patient]) -> list[Tile]:
    """One patient's original, what is rebuilt without protection, and with it.

    None where nothing was attacked; two where nothing but the first arm was.
    """
    first, answer = next(iter(record.arms)), record.answer
    shown = next((patient for patient in patients if patient.sample_id == record.shown), None)
    if shown is None:
        return []
    described = f"Original image of {shown.client}, class {shown.class_name}"
    original = picture(shown.original, "Original", described, f"{shown.client}, never sent", least=TILE)
    arms = (_tile(record, shown, arm, TILE) for arm in (first, answer) if arm is not None)
    return [Tile(original), *(tile for tile in arms if tile is not None)]


def contact_sheet(record: RunRecord, patients: Sequence[Patient]) -> list[SheetRow]:
    """A row for each image: the original, then each arm."""
    return [
        SheetRow(
            patient.client,
            patient.class_name,
            (
                Tile(picture(patient.original, "", f"Original image of {patient.client}", least=THUMBNAIL)),
                *(_tile(record, patient, arm, THUMBNAIL) for arm in record.arms),
            ),
        )
        for patient in patients
    ]


def _tile(record: RunRecord, patient: Patient, arm: str, least: int) -> Tile | None:
    """The closest reconstruction of an image in an arm, and what made it."""
    sight = record.closest(arm).get(patient.sample_id)
    if sight is None:
        return None
    title = record.arms[arm].title
    described = f"Image of {patient.client} rebuilt with {title}"
    rebuilt = patient.rebuilt[arm, sight.attack]
    drawn = picture(rebuilt, title, described, f"by {attacker(sight)}", f"SSIM {number(sight.ssim, 2)}", least=least)
    return Tile(drawn, sight.recognition)


def attacker(sight: Sight) -> str:
    """Who came this close."""
    return sight.attack if sight.attack == BEST_REMOVER else f"{sight.attack}, round {sight.round}"


def noise_cards(record: RunRecord, patients: Sequence[Patient]) -> list[NoiseCard]:
    """A card for each image and round in which an arm kept pictures of its work."""
    return [
        _noise_card(record, patient, round, arms) for patient in patients for round, arms in patient.explained.items()
    ]


def _noise_card(record: RunRecord, patient: Patient, round: int, explained: Mapping[str, Explanation]) -> NoiseCard:
    noises = [each.noise for each in explained.values() if each.noise is not None]
    limit = noise_limit(noises) if noises else None
    described = f"Original image {patient.sample_id} of {patient.client}, class {patient.class_name}"
    titles = {arm: record.arms[arm].title for arm in explained}
    return NoiseCard(
        f"{patient.client}, round {round}: {patient.class_name}",
        patient.sample_id,
        picture(patient.original, "Original", described, "never leaves the client"),
        {titles[arm]: tuple(_noise_pictures(titles[arm], patient, each, limit)) for arm, each in explained.items()},
        None if limit is None else number(limit, 3),
    )


def _noise_pictures(arm: str, patient: Patient, done: Explanation, limit: float | None) -> Iterator[Picture]:
    what = f"image {patient.sample_id} with {arm}"
    if done.vulnerability is not None:
        heat = heat_overlay(patient.original, done.vulnerability)
        yield picture(heat, "Vulnerability", f"Vulnerability map over {what}", "bright: easy to rebuild")
    if done.cam is not None:
        heat = heat_overlay(patient.original, done.cam)
        yield picture(heat, "Diagnosis (CAM)", f"Class activation map over {what}", "bright: noise is spared")
    if done.noise is not None and limit is not None:
        colours = signed_picture(done.noise, limit)
        yield picture(colours, "Noise", f"Noise added to {what}", *_noise_lines(done.noise))
    if done.protected is not None:
        yield picture(done.protected, "Protected", f"Protected {what}", "the model trains on this")
    if done.rebuilt is not None:
        described = f"What the shadow generator rebuilt of {what}"
        yield picture(done.rebuilt, "Rebuilt by shadow", described, "defender's own attack")


def _noise_lines(noise: Float[Tensor, "c h w"]) -> tuple[str, ...]:
    values = noise.detach().double()
    return f"rms {number(float(values.square().mean().sqrt()))}", f"peak {number(float(values.abs().max()))}"

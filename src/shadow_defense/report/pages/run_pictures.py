"""Exhibits as cards: pictures with captions, ready to be laid out in the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shadow_defense.report.kit.formatting import number
from shadow_defense.report.kit.metrics import FIDELITY, Metric
from shadow_defense.report.kit.pictures import Picture, heat_overlay, noise_limit, picture, signed_picture
from shadow_defense.report.records.run import ArmPictures, Exhibit

# A page with more cards starts with a selection of them.
MOST_CARDS_AT_ONCE = 6


@dataclass(frozen=True)
class Place:
    """Where an exhibit comes from: what cards are selected by."""

    client: str
    round: int
    attack: str | None
    sample_id: str
    class_name: str


@dataclass(frozen=True)
class AttackCard:
    """One image and what an attack rebuilt of it in each arm."""

    place: Place
    original: Picture
    arms: tuple[Picture, ...]


@dataclass(frozen=True)
class NoiseCard:
    """One image and what each arm did to it; ``limit`` is where the noise colours saturate, None without noise."""

    place: Place
    original: Picture
    arms: Mapping[str, tuple[Picture, ...]]
    limit: str | None


@dataclass(frozen=True)
class Choice:
    """One selector above a section: its values, and the one chosen at first, None for all."""

    key: str
    values: tuple[str, ...]
    selected: str | None


def attack_card(exhibit: Exhibit) -> AttackCard:
    """The card of one exhibit: the original and every arm's reconstruction with its scores."""
    first = next(iter(exhibit.arms.values()), None)
    arms = (
        picture(
            pictures.reconstruction,
            name,
            f"What the attack {exhibit.attack} rebuilt of image {exhibit.sample_id} with {name}",
            *_score_lines(pictures, first if pictures is not first else None),
        )
        for name, pictures in exhibit.arms.items()
    )
    return AttackCard(_place(exhibit, exhibit.attack), _original(exhibit), tuple(arms))


def noise_cards(exhibits: Sequence[Exhibit]) -> list[NoiseCard]:
    """A card for each image and round in which an arm kept pictures of its work; attacks don't change them."""
    cards: dict[tuple[str, int, str], NoiseCard] = {}
    for exhibit in exhibits:
        key = (exhibit.client, exhibit.round, exhibit.sample_id)
        if key not in cards and any(map(_explained, exhibit.arms.values())):
            cards[key] = _noise_card(exhibit)
    return list(cards.values())


def _explained(pictures: ArmPictures) -> bool:
    parts = (pictures.protected, pictures.noise, pictures.vulnerability, pictures.cam, pictures.rebuilt)
    return any(part is not None for part in parts)


def _noise_card(exhibit: Exhibit) -> NoiseCard:
    explained = {name: pictures for name, pictures in exhibit.arms.items() if _explained(pictures)}
    noises = [pictures.noise for pictures in explained.values() if pictures.noise is not None]
    limit = noise_limit(noises) if noises else None
    return NoiseCard(
        _place(exhibit, None),
        _original(exhibit),
        {name: tuple(_noise_pictures(name, exhibit, pictures, limit)) for name, pictures in explained.items()},
        None if limit is None else number(limit, 3),
    )


def _noise_pictures(arm: str, exhibit: Exhibit, pictures: ArmPictures, limit: float | None) -> Iterator[Picture]:
    what = f"image {exhibit.sample_id} with {arm}"
    if pictures.vulnerability is not None:
        heat = heat_overlay(exhibit.original, pictures.vulnerability)
        yield picture(heat, "Vulnerability", f"Vulnerability map over {what}", "bright: easy to rebuild")
    if pictures.cam is not None:
        heat = heat_overlay(exhibit.original, pictures.cam)
        yield picture(heat, "Diagnosis (CAM)", f"Class activation map over {what}", "bright: noise is spared")
    if pictures.noise is not None and limit is not None:
        colours = signed_picture(pictures.noise, limit)
        yield picture(colours, "Noise", f"Noise added to {what}", *_noise_lines(pictures.noise))
    if pictures.protected is not None:
        yield picture(pictures.protected, "Protected", f"Protected {what}", "the model trains on this")
    if pictures.rebuilt is not None:
        described = f"What the shadow generator rebuilt of {what}"
        yield picture(pictures.rebuilt, "Rebuilt by shadow", described, "defender's own attack")


def _noise_lines(noise: Float[Tensor, "c h w"]) -> tuple[str, ...]:
    values = noise.detach().double()
    return f"rms {number(float(values.square().mean().sqrt()))}", f"peak {number(float(values.abs().max()))}"


def _place(exhibit: Exhibit, attack: str | None) -> Place:
    return Place(exhibit.client, exhibit.round, attack, exhibit.sample_id, exhibit.class_name)


def _original(exhibit: Exhibit) -> Picture:
    described = f"Original image {exhibit.sample_id} of {exhibit.client}, class {exhibit.class_name}"
    return picture(exhibit.original, "Original", described, "never leaves the client")


def _score_lines(pictures: ArmPictures, reference: ArmPictures | None) -> tuple[str, ...]:
    return tuple(
        _score_line(FIDELITY[name], _score(pictures, name), _score(reference, name)) for name in ("psnr", "ssim")
    )


def _score(pictures: ArmPictures | None, name: str) -> float | None:
    return None if pictures is None else pictures.scores.get(f"{name}_whole")


def _score_line(metric: Metric, value: float | None, reference: float | None) -> str:
    # One digit less than in the tables: the line has the width of a small picture.
    digits = metric.digits - 1
    text = f"{metric.label} {number(value, digits, '' if value is None else metric.unit)}"
    if value is None or reference is None:
        return text
    change = value - reference
    if abs(change) < 0.5 * 10.0**-digits:
        return f"{text}, same"
    return f"{text}, {number(abs(change), digits)} {'higher' if change > 0 else 'lower'}"


def choices(places: Sequence[Place]) -> list[Choice]:
    """Selectors over attack, round and client, for more than :data:`MOST_CARDS_AT_ONCE` cards; else none.

    As few of them as needed are set at first: one attack, then one round, then one client.
    """
    if len(places) <= MOST_CARDS_AT_ONCE:
        return []
    remaining: list[Mapping[str, str]] = [
        {"attack": place.attack or "", "round": str(place.round), "client": place.client} for place in places
    ]
    every = remaining
    result = []
    for key in ("attack", "round", "client"):
        values = tuple(dict.fromkeys(place[key] for place in every))
        if len(values) < 2:
            continue
        selected = values[0] if len(remaining) > MOST_CARDS_AT_ONCE else None
        if selected is not None:
            remaining = [place for place in remaining if place[key] == selected]
        result.append(Choice(key, values, selected))
    return result

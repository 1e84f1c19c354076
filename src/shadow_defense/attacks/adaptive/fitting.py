"""From an observation to the adaptation of its defense, or of several in a row."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel

from shadow_defense.attacks.adaptive.adaptations import adaptation
from shadow_defense.attacks.adaptive.matching import MatchingAdaptation
from shadow_defense.attacks.adaptive.scene import Scene, scene
from shadow_defense.attacks.adaptive.transforms import shifted
from shadow_defense.attacks.observation import Observation
from shadow_defense.defenses.base import TensorPlace
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.defenses.registry import DEFENSES


def adaptation_of(observation: Observation, draws: int) -> MatchingAdaptation:
    """What an attacker that knows ``observation.defense`` compares.

    Parts of a combination are taken in the order in which they acted: those on gradients, then those on the update.
    Those on gradients never saw what weight decay adds to a step; it is taken off both sides for them, and added
    again before what acts on the update.

    Args:
        draws: simulations of a random model that the update is averaged over.

    Raises:
        ThreatModelError: where the defense is not granted.
    """
    parts = observation.defense.parts()
    kinds = {name: DEFENSES[name] for name in parts}
    fitted = MatchingAdaptation()
    for place in get_args(TensorPlace):
        here = [name for name, kind in kinds.items() if _is_seen_to_at(place, kind, parts[name])]
        if not here:
            continue
        seen = scene(observation, place)
        at_place = MatchingAdaptation()
        for name in here:
            at_place = at_place.then(_fitted(name, kinds[name], parts[name], seen))
        if place == "gradients" and any(bool(each.any()) for each in seen.decayed):
            off, on = (MatchingAdaptation((shifted([sign * each for each in seen.decayed]),)) for sign in (-1, 1))
            at_place = off.then(at_place).then(on)
        fitted = fitted.then(at_place)
    for name, kind in kinds.items():
        if kind.draws_in_model:
            note = f"the simulated update is the mean of {draws} simulations, since {name} is a random layer"
            fitted = fitted.then(MatchingAdaptation(draws=draws, notes=(note,)))
    return fitted


def _is_seen_to_at(place: TensorPlace, kind: DefenseKind, settings: BaseModel) -> bool:
    """Defenses of batches are seen to with those of gradients: they act before any update."""
    places = kind.places(settings)
    return not kind.draws_in_model and (place in places or (place == "gradients" and "update" not in places))


def _fitted(name: str, kind: DefenseKind, settings: BaseModel, seen: Scene) -> MatchingAdaptation:
    if kind.protects_nothing:
        return MatchingAdaptation()
    if kind.nothing_to_fit is not None:
        return MatchingAdaptation(notes=(kind.nothing_to_fit,))
    return adaptation(settings, seen) or MatchingAdaptation(notes=(f"nothing is known to fit to {name}",))

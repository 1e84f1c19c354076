"""From an observation to the adaptation of its defense, or of several in a row."""

from __future__ import annotations

from typing import get_args

from shadow_defense.attacks.adaptive.adaptations import ADAPTATIONS
from shadow_defense.attacks.adaptive.matching import MatchingAdaptation
from shadow_defense.attacks.adaptive.scene import scene
from shadow_defense.attacks.adaptive.transforms import shifted
from shadow_defense.attacks.observation import Observation
from shadow_defense.defenses.base import TensorPlace
from shadow_defense.defenses.registry import DEFENSES

RANDOM_MODELS = frozenset({"precode"})
"""Defenses that are random layers of the model: every simulation of the client draws them anew."""


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
    fitted = MatchingAdaptation()
    for place in get_args(TensorPlace):
        here = {name: own for name, own in parts.items() if name in ADAPTATIONS and _acts_at(name, own, place)}
        if not here:
            continue
        seen = scene(observation, place)
        at_place = MatchingAdaptation()
        for name, settings in here.items():
            at_place = at_place.then(ADAPTATIONS[name](settings, seen))
        if place == "gradients" and any(bool(each.any()) for each in seen.decayed):
            off, on = (MatchingAdaptation((shifted([sign * each for each in seen.decayed]),)) for sign in (-1, 1))
            at_place = off.then(at_place).then(on)
        fitted = fitted.then(at_place)
    for name in parts:
        if name in RANDOM_MODELS:
            note = f"the simulated update is the mean of {draws} simulations, since {name} is a random layer"
            fitted = fitted.then(MatchingAdaptation(draws=draws, notes=(note,)))
        elif name not in ADAPTATIONS:
            fitted = fitted.then(MatchingAdaptation(notes=(f"nothing is known to fit to {name}",)))
    return fitted


def _acts_at(name: str, settings: object, place: TensorPlace) -> bool:
    """Defenses of batches and of the model are seen to with those of gradients: they act before any update."""
    places = DEFENSES[name].places(settings)  # type: ignore[arg-type]
    return place in places or (place == "gradients" and "update" not in places)

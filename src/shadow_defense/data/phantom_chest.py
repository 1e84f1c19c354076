"""Drawn frontal chest X-rays, with an opacity in one lung as the disease and its exact mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from shadow_defense.data.dataset import Parts
from shadow_defense.data.phantom import AcrossAxis, Anatomy, Column, DownAxis, bump, edge, read_phantom, spot

# Lengths are in halves of the image side, the centre is (0, 0), y points down, brightness is in [0, 1].
ANATOMY: dict[str, tuple[float, float]] = {
    "shift_x": (-0.06, 0.06),
    "shift_y": (-0.05, 0.05),
    "tilt": (-0.05, 0.05),
    "scale": (0.9, 1.06),
    "body_width": (0.86, 1.0),
    "lung_width": (0.26, 0.33),
    "lung_height": (0.62, 0.74),
    "lung_apart": (0.38, 0.43),
    "lung_dark": (0.34, 0.46),
    "dome": (0.42, 0.6),
    "dome_difference": (-0.08, 0.02),
    "heart_x": (0.08, 0.16),
    "heart_width": (0.24, 0.36),
    "heart_height": (0.24, 0.32),
    "heart_bright": (0.24, 0.36),
    "spine_bright": (0.06, 0.14),
    "rib_spacing": (0.15, 0.19),
    "rib_phase": (0.0, 1.0),
    "rib_curve": (0.45, 0.7),
    "rib_bright": (0.05, 0.1),
    "clavicle_y": (-0.7, -0.58),
    "clavicle_slope": (-0.3, -0.05),
    "vessels": (0.03, 0.07),
    "vessel_phase": (0.0, 6.28),
    "vessel_phase_2": (0.0, 6.28),
    "stomach": (0.0, 0.18),
    "exposure": (0.85, 1.12),
    "contrast": (0.85, 1.25),
    "noise": (0.008, 0.022),
    "lesion_side": (-1.0, 1.0),
    "lesion_x": (-0.5, 0.5),
    "lesion_y": (-0.5, 0.6),
    "lesion_radius": (0.13, 0.26),
    "lesion_lobes": (0.0, 6.28),
    "lesion_bright": (0.18, 0.32),
    "lesion_grain": (0.0, 6.28),
}


def chest_phantom(*, images: int, image_size: int | None, channels: int | None, seed: int) -> Parts:
    """Grey chest X-rays drawn from random anatomy; label 1 has an opacity in one lung and its mask.

    For trying things out where no patient data may be used: shapes, contrasts and scales are plausible, the
    physics is not. Nothing is set aside: the parts are cut as for any other source.
    """
    return read_phantom(
        draw_chest,
        ANATOMY,
        "chest",
        ("normal", "opacity"),
        images=images,
        image_size=image_size,
        channels=channels,
        seed=seed,
    )


def draw_chest(
    a: Anatomy, diseased: Column, x: AcrossAxis, y: DownAxis
) -> tuple[Float32[np.ndarray, "n 1 h w"], Bool[np.ndarray, "n h w"]]:
    """Brightness in [0, 1] and the pixels to which the opacity adds anything."""
    x, y = x - a["shift_x"], y - a["shift_y"]
    x, y = (x + a["tilt"] * y) / a["scale"], (y - a["tilt"] * x) / a["scale"]
    across = np.abs(x)

    shoulder = 0.26 + (a["body_width"] - 0.26) * edge(y + 0.78 - 0.1 * across, 0.12)
    body = edge(shoulder - across, 0.05)
    lungs = _lung(a, x, y, -1) + _lung(a, x, y, 1)
    centre = bump(x, 0.13) * edge(0.95 - np.abs(y), 0.2)
    heart_x = (x - a["heart_x"] - 0.12 * (y - 0.25)) / a["heart_width"]
    heart = edge(1 - np.hypot(heart_x, (y - 0.24) / a["heart_height"]), 0.1)

    light = 0.66 * body - a["lung_dark"] * lungs
    # A union, not a sum: heart and mediastinum lie one behind the other only in part, and a sum saturates.
    soft = 1 - (1 - centre) * (1 - 0.9 * heart)
    light = light + a["heart_bright"] * soft * (0.35 + 0.65 * lungs)
    vertebrae = bump(x, 0.075) * (0.75 + 0.25 * np.cos(2 * np.pi * y / 0.13))
    light = light + a["spine_bright"] * vertebrae * body
    light = light - 0.1 * bump(x - 0.01, 0.045) * edge(-0.25 - y, 0.06) * body
    light = light + _bones(a, x, y) * body + _vessels(a, x, y) * lungs
    light = light - a["stomach"] * bump(np.hypot((x - 0.4) / 1.5, y - a["dome"] - 0.16), 0.08)

    opacity = _opacity(a, x, y, lungs) * diseased
    light = np.clip(light + opacity, 0, 1)
    light = a["exposure"] * light ** a["contrast"]
    return light.astype(np.float32)[:, None], opacity > 0


def _lung(a: Anatomy, x: Any, y: Any, side: int) -> Any:
    """A superellipse that narrows towards the apex, cut off below by the dome of the diaphragm."""
    v = (y + 0.12) / a["lung_height"]
    centre = side * (a["lung_apart"] + 0.05 * v)
    u = (x - centre) / (a["lung_width"] * (1 - 0.28 * np.clip(-v, 0, 1)))
    inside = edge(1 - (np.abs(u) ** 2.4 + np.abs(v) ** 2.4) ** (1 / 2.4), 0.07)
    dome = a["dome"] + side * a["dome_difference"] / 2 + 0.22 * np.square((x - centre) / 0.3) - 0.05
    return inside * edge(dome - y, 0.03)


def _bones(a: Anatomy, x: Any, y: Any) -> Any:
    """Ribs behind (arched, falling outwards), fainter ribs in front (falling inwards), collar bones."""
    across = np.abs(x)
    cage = edge(0.78 - across, 0.05) * edge(0.62 - y, 0.08) * edge(y + 0.86, 0.06)
    behind = (y + 0.16 * across - a["rib_curve"] * across**2) / a["rib_spacing"] + a["rib_phase"]
    front = (y - 0.75 * (0.7 - across)) / (1.15 * a["rib_spacing"]) + a["rib_phase"]
    ribs = _stripe(behind) * edge(across - 0.07, 0.03) + 0.45 * _stripe(front) * edge(across - 0.3, 0.08)
    collar_y = a["clavicle_y"] + a["clavicle_slope"] * (across - 0.1) + 0.06 * np.sin(5 * across)
    collar = bump(y - collar_y, 0.032) * edge(across - 0.08, 0.02) * edge(0.62 - across, 0.05)
    return a["rib_bright"] * ribs * cage + 0.1 * collar


def _stripe(phase: Any) -> Any:
    """Rounded bands, one a period, with brighter rims as the walls of a tube have."""
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    return edge(wave - 0.5, 0.35) + 0.25 * bump(wave - 0.5, 0.15)


def _vessels(a: Anatomy, x: Any, y: Any) -> Any:
    """Vessels that radiate from both hila and fade towards the outside."""
    u, v = np.abs(x) - 0.16, y - 0.02
    distance, angle = np.hypot(u, v), np.arctan2(v, u)
    rays = np.cos(9 * angle + a["vessel_phase"] + 4 * distance) + np.cos(
        14 * angle + a["vessel_phase_2"] - 7 * distance
    )
    return a["vessels"] * (
        1.6 * bump(distance, 0.13) + 0.5 * rays * edge(distance - 0.08, 0.05) * np.exp(-distance / 0.3)
    )


def _opacity(a: Anatomy, x: Any, y: Any, lungs: Any) -> Any:
    """A patchy density inside one lung, exactly 0 outside its outline and outside the lungs."""
    side = np.where(a["lesion_side"] < 0, -1, 1)
    u = x - side * a["lung_apart"] - a["lesion_x"] * a["lung_width"]
    v = y + 0.12 - a["lesion_y"] * a["lung_height"]
    grain = 1 + 0.16 * np.cos(19 * u + 7 * v + a["lesion_grain"]) * np.cos(17 * v - 5 * u + 2 * a["lesion_grain"])
    within = np.clip((lungs - 0.2) / 0.8, 0, 1)
    return a["lesion_bright"] * spot(u, v, a["lesion_radius"], a["lesion_lobes"]) * grain * within

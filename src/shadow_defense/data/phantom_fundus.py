"""Drawn colour photographs of the back of the eye, with haemorrhages and exudates as the disease and their mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from shadow_defense.data.dataset import Parts
from shadow_defense.data.phantom import AcrossAxis, Anatomy, Column, DownAxis, bump, edge, read_phantom, spot

HAEMORRHAGES, EXUDATES = 3, 4

# Lengths are in halves of the image side, the centre is (0, 0), y points down, brightness is in [0, 1].
ANATOMY: dict[str, tuple[float, float]] = {
    "eye": (-1.0, 1.0),
    "shift_x": (-0.04, 0.04),
    "shift_y": (-0.04, 0.04),
    "tilt": (-0.12, 0.12),
    "field": (0.9, 0.98),
    "disc_x": (0.42, 0.56),
    "disc_radius": (0.12, 0.165),
    "disc_aspect": (0.85, 1.0),
    "cup": (0.35, 0.6),
    "disc_bright": (0.32, 0.5),
    "macula_y": (0.0, 0.1),
    "macula_dark": (0.12, 0.22),
    "arcade": (0.55, 0.75),
    "arcade_power": (0.42, 0.58),
    "lower_arcade": (0.92, 1.08),
    "vein_width": (0.017, 0.024),
    "vessel_dark": (0.16, 0.26),
    "wave": (0.015, 0.035),
    "wave_phase": (0.0, 6.28),
    "branch": (0.2, 0.45),
    "branch_2": (0.2, 0.45),
    "red": (0.62, 0.85),
    "green": (0.28, 0.42),
    "blue": (0.08, 0.2),
    "light_x": (-0.5, 0.5),
    "light_y": (-0.5, 0.5),
    "vignette": (0.12, 0.32),
    "choroid": (0.0, 0.03),
    "choroid_phase": (0.0, 6.28),
    "noise": (0.006, 0.016),
    **{f"haemorrhage_{i}_angle": (0.0, 6.28) for i in range(HAEMORRHAGES)},
    **{f"haemorrhage_{i}_distance": (0.12, 0.7) for i in range(HAEMORRHAGES)},
    **{f"haemorrhage_{i}_radius": (0.05, 0.11) for i in range(HAEMORRHAGES)},
    **{f"exudate_{i}_angle": (0.0, 6.28) for i in range(EXUDATES)},
    **{f"exudate_{i}_distance": (0.1, 0.5) for i in range(EXUDATES)},
    **{f"exudate_{i}_radius": (0.035, 0.08) for i in range(EXUDATES)},
}


def fundus_phantom(*, images: int, image_size: int | None, channels: int | None, seed: int) -> Parts:
    """Colour fundus photographs drawn from random anatomy; label 1 has haemorrhages, exudates and their mask.

    For trying things out where no patient data may be used: shapes, colours and scales are plausible, the optics
    is not. Nothing is set aside: the parts are cut as for any other source.
    """
    return read_phantom(
        draw_fundus,
        ANATOMY,
        "fundus",
        ("normal", "lesions"),
        images=images,
        image_size=image_size,
        channels=channels,
        seed=seed,
    )


def draw_fundus(
    a: Anatomy, diseased: Column, x: AcrossAxis, y: DownAxis
) -> tuple[Float32[np.ndarray, "n 3 h w"], Bool[np.ndarray, "n h w"]]:
    """Brightness in [0, 1] and the pixels that a lesion changes."""
    field = edge(a["field"] - np.hypot(x, y), 0.012)
    side = np.where(a["eye"] < 0, np.float32(-1), np.float32(1))
    # From here x runs from the macula (negative) to the disc (positive) in either eye.
    u, v = side * (x - a["shift_x"]), y - a["shift_y"]
    u, v = u + a["tilt"] * v, v - a["tilt"] * u

    falloff = 1 - a["vignette"] * (np.square(x - a["light_x"]) + np.square(y - a["light_y"]))
    texture = np.cos(11 * u + 3 * np.sin(5 * v + a["choroid_phase"])) * np.cos(13 * v + 2 * np.sin(7 * u))
    macula = bump(np.hypot(u + 0.12, v - a["macula_y"]), 0.15) + 0.5 * bump(np.hypot(u + 0.12, v - a["macula_y"]), 0.05)
    shade = falloff * (1 - a["macula_dark"] * macula) + a["choroid"] * texture

    radius = np.hypot((u - a["disc_x"]) / a["disc_aspect"], v)
    disc = edge(a["disc_radius"] - radius, 0.018)
    cup = edge(a["cup"] * a["disc_radius"] - radius, 0.03)
    vessels = np.clip(_vessels(a, u, v), 0, 1) * (1 - 0.45 * cup)
    blood, fat = (np.where(diseased > 0, lesion, 0) for lesion in _lesions(a, u, v, np.hypot(x, y)))

    # What each thing does to red, green and blue: blood takes green and blue, the disc and fat add yellow.
    layers = (
        (a["red"], 0.4, 0.14, 0.45, -0.24, 0.22),
        (a["green"], 0.72, 0.45, 0.95, -0.21, 0.4),
        (a["blue"], 0.38, 0.5, 0.45, -0.08, 0.14),
    )
    colours = []
    for base, disc_gain, cup_gain, vessel_loss, blood_gain, fat_gain in layers:
        colour = base * shade + a["disc_bright"] * (disc_gain * disc + 0.5 * cup_gain * cup)
        colour = colour * (1 - vessel_loss * a["vessel_dark"] * 2 * vessels)
        colour = np.clip(colour + blood_gain * blood + fat_gain * fat, 0.02, 1)
        colours.append(colour * field)
    return np.stack(colours, axis=1).astype(np.float32), (blood > 0) | (fat > 0)


def _vessels(a: Anatomy, u: Any, v: Any) -> Any:
    """Four arcades (a vein and a thinner artery each, above and below), their branches, and nasal vessels.

    Each vessel is a curve v = f(u); the distance to it is the vertical one divided by sqrt(1 + slope^2).
    """
    along = np.maximum(a["disc_x"] - u, 1e-3)
    nasal = np.maximum(u - a["disc_x"], 1e-3)
    total: Any = 0.0
    for half in (-1, 1):
        span = a["arcade"] * (a["lower_arcade"] if half > 0 else 1)
        for width, spread, shift in ((1.0, 1.0, 0.0), (0.65, 0.86, 1.7)):
            curve = span * spread * along ** a["arcade_power"] * (1 - 0.28 * along)
            curve = half * curve + a["wave"] * np.sin(9 * along + a["wave_phase"] + shift + half) * along
            slope = a["arcade_power"] * span * spread * along ** (a["arcade_power"] - 1)
            thickness = a["vein_width"] * width * (1 - 0.33 * along)
            total = total + _line(v - curve, slope, thickness) * edge(a["disc_x"] - u, 0.01)
            for start, inwards in ((a["branch"], -0.5), (a["branch_2"] + 0.3, 0.42)):
                further = np.maximum(along - start, 0)
                twig = curve + half * inwards * further**0.8 * (0.6 + 0.3 * width)
                fine = thickness * 0.6 * (1 - 0.3 * further)
                total = total + 0.8 * _line(v - twig, slope + 0.4, fine) * edge(along - start, 0.01)
        curve = half * 0.75 * span * nasal**0.6 + a["wave"] * np.sin(12 * nasal + a["wave_phase"])
        total = total + 0.9 * _line(v - curve, 0.45 * span * nasal**-0.4, a["vein_width"] * 0.8) * edge(
            u - a["disc_x"], 0.01
        )
    return total


def _line(offset: Any, slope: Any, width: Any) -> Any:
    return bump(offset / np.sqrt(1 + slope * slope), width)


def _lesions(a: Anatomy, u: Any, v: Any, from_centre: Any) -> tuple[Any, Any]:
    """Blood and fat, each exactly 0 outside its spots and near the rim of the field."""
    inside = np.clip((0.86 - from_centre) / 0.03, 0, 1)
    blood = fat = np.float32(0)
    for i in range(HAEMORRHAGES):
        angle, distance = a[f"haemorrhage_{i}_angle"], a[f"haemorrhage_{i}_distance"]
        du, dv = u + 0.1 - distance * np.cos(angle), v - distance * np.sin(angle)
        blood = np.maximum(blood, spot(du, dv, a[f"haemorrhage_{i}_radius"], angle))
    for i in range(EXUDATES):
        angle, distance = a[f"exudate_{i}_angle"], a[f"exudate_{i}_distance"]
        du, dv = u + 0.12 - distance * np.cos(angle), v - distance * np.sin(angle)
        fat = np.maximum(fat, spot(du, dv, a[f"exudate_{i}_radius"], 2 * angle))
    return np.sqrt(blood) * inside, np.sqrt(fat) * inside

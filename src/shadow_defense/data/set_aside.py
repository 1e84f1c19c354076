"""Cutting a share of the images off: by patient where patients are known, else balanced over the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from shadow_defense.data.splits import Indices, group_members
from shadow_defense.errors import DataError


def set_aside(
    strata: Int64[np.ndarray, " n"],
    groups: Sequence[str] | None,
    fraction: float,
    purpose: str,
    generator: np.random.Generator,
) -> tuple[Indices, Indices]:
    """Split ``n`` images into those that stay and ``fraction`` of them that are set aside, both in ascending order.

    Each stratum (a class) gives its own share. With patients, whole patients are taken as long as they fit, so the
    share may come out smaller; a patient belongs to the stratum of their first image. At least one image (patient)
    is set aside and one stays.

    Raises:
        DataError: when there is nothing to divide: fewer than two images, or all of one patient.
    """
    units = [np.array([index]) for index in range(len(strata))] if groups is None else group_members(groups)
    if len(units) < 2:
        what = "images" if groups is None else "patients"
        raise DataError(
            f"cannot set a {purpose} part aside: {len(units)} {what}, expected two at least; give more data"
        )
    taken: list[Indices] = []
    order = generator.permutation(len(units))
    for stratum in np.unique(strata):
        own = [units[index] for index in order if strata[units[index][0]] == stratum]
        room = round(fraction * sum(len(unit) for unit in own))
        for unit in own:
            if len(unit) <= room:
                taken.append(unit)
                room -= len(unit)
    if len(taken) == len(units):
        taken.pop()
    if not taken:
        taken = [min((units[index] for index in order), key=len)]
    aside = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(strata)), aside), aside

"""Where the samples of a plane lie when it is kept as phases: the geometry of a resampled activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt8

TAPS = 6
"""Filter taps for each phase, before and after the activation."""

CLAMPED = 2
"""The code of samples with slope 0: those that were clamped, and those that only fill up a row."""


@dataclass(frozen=True)
class Stage:
    """Weighted sums of six shifted phases, along one axis.

    Attributes:
        source: (targets, terms), the phase that each term reads.
        shift: (targets, terms), by how many samples of that phase it is read further on; counted from ``start``.
        tap: (targets, terms), the filter tap that weighs it.
        start: the least index, in samples of a source phase, that any term reads for target index 0.
        stop: one more than the greatest index that is read for the last target.
        length: samples of a target phase.
    """

    source: Int64[np.ndarray, "targets terms"]
    shift: Int64[np.ndarray, "targets terms"]
    tap: Int64[np.ndarray, "targets terms"]
    start: int
    stop: int
    length: int


def raising_stage(factor: int, before: int, phases: int, samples: int) -> Stage:
    """``U[v] = sum_k f[k] X[(v + k - before) / factor]`` over the k that divide; X in phases / factor phases."""
    split = phases // factor
    target = np.arange(phases)[:, None]
    first = (before - target) % factor
    tap = first + factor * np.arange(TAPS)
    return _stage((target + tap - before) // factor, split, tap, -(-samples // phases))


def lowering_stage(factor: int, shift: int, phases: int, outputs: int) -> Stage:
    """``out[x] = sum_k h[k] U[factor x + shift + k]``; U in ``phases`` phases, out in phases / factor."""
    joined = phases // factor
    tap = np.arange(TAPS * factor)
    position = factor * np.arange(joined)[:, None] + shift + tap
    return _stage(position, phases, np.broadcast_to(tap, position.shape), -(-outputs // joined))


def _stage(position: np.ndarray, phases: int, tap: np.ndarray, length: int) -> Stage:
    index = position // phases
    start = int(index.min())
    return Stage(
        np.ascontiguousarray(position % phases),
        np.ascontiguousarray(index - start),
        np.ascontiguousarray(tap),
        start,
        int(index.max()) + length,
        length,
    )


@dataclass(frozen=True)
class Direction:
    """One way through the layer: raise, multiply by slopes, lower.

    Attributes:
        split, joined: phases of the input and of the output.
        inputs, outputs: side of the planes that come in and go out.
    """

    raising: Stage
    lowering: Stage
    split: int
    joined: int
    inputs: int
    outputs: int


@dataclass(frozen=True, eq=False)
class Geometry:
    """Both ways through one filtered activation, on a common layout of the up-sampled samples.

    Attributes:
        phases: the least common multiple of the two factors.
        samples: side of the up-sampled plane.
        columns: samples of one of its phases, along one axis.
        lead: zeros before a phase, along each axis; ``pitch`` samples from row to row, ``rows`` rows.
        outside: (phases, phases, columns, pitch), :data:`CLAMPED` where an entry is no sample, else 0.
    """

    forward: Direction
    backward: Direction
    phases: int
    samples: int
    columns: int
    lead: int
    rows: int
    pitch: int
    outside: UInt8[np.ndarray, "phases phases columns pitch"]


@lru_cache(maxsize=256)
def geometry(inputs: int, outputs: int, up: int, down: int, before: int, after: int) -> Geometry:
    """The geometry of: stuff with zeros by ``up``, pad, filter by 6 up taps, activate, filter by 6 down, thin out.

    Args:
        inputs, outputs: side of the planes.
        before, after: zeros around the stuffed plane; negative crops.
    """
    phases = math.lcm(up, down)
    samples = inputs * up + before + after - (TAPS * up - 1)
    # The transpose of a filter reads it backwards; these filters are symmetric, so that they serve both ways.
    ways = {
        "forward": (up, before, down, 0, inputs, outputs),
        "backward": (down, TAPS * down - 1, up, before - (TAPS * up - 1), outputs, inputs),
    }
    directions = {
        name: Direction(
            raising_stage(rise, pad, phases, samples),
            lowering_stage(fall, shift, phases, size_out),
            phases // rise,
            phases // fall,
            size_in,
            size_out,
        )
        for name, (rise, pad, fall, shift, size_in, size_out) in ways.items()
    }
    columns = -(-samples // phases)
    both = list(directions.values())
    lead = max(0, *(-way.lowering.start for way in both))
    rows = lead + max(columns, *(way.lowering.stop for way in both))
    pitch = max(rows, *(way.raising.stop - way.raising.start for way in both))
    index = np.arange(pitch)[None, :] * phases + np.arange(phases)[:, None]
    column = np.where((index >= lead * phases) & (index < lead * phases + samples), 0, CLAMPED)
    row = column[:, lead : lead + columns]
    outside = np.maximum(row[:, None, :, None], column[None, :, None, :]).astype(np.uint8)
    return Geometry(directions["forward"], directions["backward"], phases, samples, columns, lead, rows, pitch, outside)

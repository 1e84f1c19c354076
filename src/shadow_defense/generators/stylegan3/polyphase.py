"""Up-sample, apply a leaky ReLU, down-sample, plane by plane on the CPU, without the zeros and the discarded samples.

Zero-stuffing multiplies the work of a filter by the factor of resampling, and up-sampled batches do not fit the
caches. Here one plane at a time is kept as its *phases* (samples 0, F, 2F, ... of each axis, phase_planes.py): every
filter is then a sum of shifted phases over consecutive numbers, as many as a plane has. Compiled by numba; the planes
are shared among torch's number of threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, no_type_check

import numpy as np

from shadow_defense.generators.stylegan3.compiled import compiled
from shadow_defense.generators.stylegan3.phase_planes import Geometry
from shadow_defense.generators.stylegan3.threads import run_shares


@compiled
@no_type_check
def _sum_six(target, source, base, place, w, tap, first, add):
    # Six sources at most: with more the compiler gives up proving that they don't overlap the target.
    n = target.size
    a, b = source[base + place[first] :][:n], source[base + place[first + 1] :][:n]
    c, d = source[base + place[first + 2] :][:n], source[base + place[first + 3] :][:n]
    e, f = source[base + place[first + 4] :][:n], source[base + place[first + 5] :][:n]
    w0, w1, w2 = w[tap[first]], w[tap[first + 1]], w[tap[first + 2]]
    w3, w4, w5 = w[tap[first + 3]], w[tap[first + 4]], w[tap[first + 5]]
    if add:
        for j in range(n):
            target[j] += w0 * a[j] + w1 * b[j] + w2 * c[j] + w3 * d[j] + w4 * e[j] + w5 * f[j]
    else:
        for j in range(n):
            target[j] = w0 * a[j] + w1 * b[j] + w2 * c[j] + w3 * d[j] + w4 * e[j] + w5 * f[j]


@compiled
@no_type_check
def _sum(target, source, base, place, w, tap, add):
    # In blocks, so that what six terms wrote is still in the nearest cache when the next six are added.
    for begin in range(0, target.size, 2048):
        block = target[begin : begin + 2048]
        for first in range(0, place.size, 6):
            _sum_six(block, source, base + begin, place, w, tap, first, add or first > 0)


@compiled
@no_type_check
def _activate(values, codes, outside, negative, positive, limit):
    for j in range(values.size):
        value = values[j]
        code = np.uint8(1) if value >= 0 else np.uint8(0)
        value = value * (positive if value >= 0 else negative)
        code = np.uint8(2) if abs(value) > limit else code
        codes[j] = max(code, outside[j])
        value = limit if value > limit else value
        values[j] = -limit if value < -limit else value


@compiled
@no_type_check
def _multiply_by_slopes(values, codes, negative, positive):
    for j in range(values.size):
        slope = positive if codes[j] == 1 else negative
        values[j] = np.float32(0.0) if codes[j] == 2 else slope * values[j]


@compiled
@no_type_check
def _fill(phases, plane, gain, offset, split, start, rows, pitch):
    size = plane.shape[0]
    for y in range(size):
        row = y // split - start
        if row < 0 or row >= rows:
            continue
        for g in range(split):
            line = phases[((y % split * split + g) * rows + row) * pitch :][:pitch]
            begin = max(0, start)
            end = min((size - g + split - 1) // split, pitch + start)
            for i in range(begin, end):
                line[i - start] = gain * plane[y, i * split + g] + offset


@compiled
@no_type_check
def _empty(plane, phases, joined, rows, pitch):
    size = plane.shape[0]
    for y in range(size):
        for e in range(joined):
            line = phases[((y % joined * joined + e) * rows + y // joined) * pitch :][:pitch]
            for i in range((size - e + joined - 1) // joined):
                plane[y, i * joined + e] = line[i]


@compiled
@no_type_check
def _planes(
    first, last, planes, scale, bias, codes, keep, output, original, sums, backward,
    up_rows, up_columns, down_rows, down_columns, negative, positive, limit,
    outside, lead, rows, pitch, split, joined, input_start, input_rows, output_rows,
    raise_rows, raise_columns, raise_taps, lower_rows, lower_columns, lower_taps,
):  # fmt: skip
    phases, block = outside.shape[0], outside.shape[2]
    size = output.shape[1]
    # One row more everywhere: the last sums read on into the filling of a next row.
    stuffed = np.zeros((split * split * input_rows + 1) * pitch, np.float32)
    wide = np.zeros((phases * split * input_rows + 1) * pitch, np.float32)
    raised = np.zeros((phases * phases * rows + 1) * pitch, np.float32)
    narrow = np.zeros((joined * phases * rows + 1) * pitch, np.float32)
    result = np.zeros((joined * joined * output_rows + 1) * pitch, np.float32)
    input_plane, plane = input_rows * pitch, rows * pitch
    one, zero = np.float32(1.0), np.float32(0.0)
    unkept = np.empty(outside.shape, np.uint8)
    for p in range(first, last):
        gain = one if backward else scale[p]
        _fill(stuffed, planes[p], gain, zero if backward else bias[p], split, input_start, input_rows, pitch)
        for r in range(up_rows.shape[0]):
            for f in range(phases):
                for g in range(split):
                    begin = (f * split + g) * input_plane
                    target = wide[begin + lead : begin + input_plane]
                    _sum(
                        target, stuffed, g * split * input_plane, raise_columns[f], up_columns[r], raise_taps[f], False
                    )
            for v in range(phases):
                for f in range(phases):
                    begin = (v * phases + f) * plane + lead * pitch
                    target = raised[begin : begin + block]
                    _sum(target, wide, f * split * input_plane, raise_rows[v], up_rows[r], raise_taps[v], r > 0)
        met = codes[p] if keep else unkept
        for v in range(phases):
            for f in range(phases):
                begin = (v * phases + f) * plane + lead * pitch
                values = raised[begin : begin + block]
                if backward:
                    _multiply_by_slopes(values, met[v, f], negative, positive)
                else:
                    _activate(values, met[v, f], outside[v, f], negative, positive, limit)
        for r in range(down_rows.shape[0]):
            for e in range(joined):
                for v in range(phases):
                    begin = (e * phases + v) * plane + lead * pitch
                    target = narrow[begin : begin + block]
                    base = v * phases * plane + lead * pitch
                    _sum(target, raised, base, lower_columns[e], down_columns[r], lower_taps[e], False)
            for x in range(joined):
                for e in range(joined):
                    begin = (x * joined + e) * output_rows * pitch
                    target = result[begin : begin + output_rows * pitch]
                    _sum(target, narrow, e * phases * plane, lower_rows[x], down_rows[r], lower_taps[x], r > 0)
        _empty(output[p], result, joined, output_rows, pitch)
        if backward:
            total, product = zero, zero
            gain = scale[p]
            for y in range(size):
                gradient, came_in = output[p, y], original[p, y]
                for x in range(size):
                    total += gradient[x]
                    product += gradient[x] * came_in[x]
                    gradient[x] *= gain
            sums[p, 0] = total
            sums[p, 1] = product


@lru_cache(maxsize=512)
def _layout(layer: Geometry, backward: bool) -> tuple[Any, ...]:
    way = layer.backward if backward else layer.forward
    up, down, pitch = way.raising, way.lowering, layer.pitch
    input_rows = up.stop - up.start
    input_plane, plane = input_rows * pitch, layer.rows * pitch
    begin = layer.lead + down.start
    return (
        layer.outside.reshape(layer.phases, layer.phases, -1), layer.lead, layer.rows, pitch,
        way.split, way.joined, up.start, input_rows, down.length,
        up.source * input_plane + up.shift * pitch, up.source * input_plane + up.shift, up.tap,
        down.source * plane + (begin + down.shift) * pitch, down.source * plane + begin + down.shift, down.tap,
    )  # fmt: skip


def run_planes(layer: Geometry, backward: bool, *arguments: Any) -> None:
    """Fill the output of every plane; ``arguments`` are :func:`_planes`' own after ``first, last``, in its order."""
    run_shares(len(arguments[0]), _planes, *arguments, *_layout(layer, backward))

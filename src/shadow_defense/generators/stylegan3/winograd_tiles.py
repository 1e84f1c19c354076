"""Planes to Winograd tiles and back: the compiled transforms of winograd.py.

With the points 0, ±p, ±q and infinity, an output tile of 4 x 4 is ``Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A`` for a filter g of
3 x 3 and the input tile d of 6 x 6 above it (Lavin and Gray, 2016). Each of the 36 positions of a tile is a matrix of
its own, (channels, tiles), so that the products are 36 matrix products. Both axes of a transform run over the tiles of
a plane, which lie side by side in a scratch array.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from shadow_defense.generators.stylegan3.compiled import compiled
from shadow_defense.generators.stylegan3.winograd_layout import BLOCK, LANES, POINTS

P, Q = (np.float32(point) for point in POINTS)
P2, Q2, P3, Q3 = P * P, Q * Q, P * P * P, Q * Q * Q
PRODUCT, SUM = P2 * Q2, P2 + Q2
# Unsigned: signed indices are checked for being negative, and such loops are not vectorised.
ONE, TWO, THREE, FOUR = (np.uint64(count) for count in range(1, 5))
ROWS, COLUMNS = np.uint64(6 * BLOCK), np.uint64(BLOCK)
"""From one block of a tile's 6 x 6 to the one below, and to the one on its right."""
DEALT = 4 * BLOCK
"""From a column of dealt blocks to the next: a block for each of four rows."""


def _input_transform(step: Any) -> Any:
    """``Bᵀ``: six blocks (four from ``source``, two from ``below``) to six that are ``step`` apart."""
    s2, s3, s4, s5 = (np.uint64(count * int(step)) for count in range(2, 6))
    b1, b2, b3 = (np.uint64(count * BLOCK) for count in range(1, 4))

    @compiled
    @no_type_check
    def run(scratch, source, below, target, n):
        for i in range(n):
            j = np.uint64(i)
            f, g, t = source + j, below + j, target + j
            d0, d1, d2, d3 = scratch[f], scratch[f + b1], scratch[f + b2], scratch[f + b3]
            d4, d5 = scratch[g], scratch[g + b1]
            even, odd = d4 - Q2 * d2, P * (d3 - Q2 * d1)
            scratch[t] = PRODUCT * d0 - SUM * d2 + d4
            scratch[t + step] = even + odd
            scratch[t + s2] = even - odd
            even, odd = d4 - P2 * d2, Q * (d3 - P2 * d1)
            scratch[t + s3] = even + odd
            scratch[t + s4] = even - odd
            scratch[t + s5] = PRODUCT * d1 - SUM * d3 + d5

    return run


def _gradient_transform(step: Any) -> Any:
    """``A``: four blocks from ``source`` to six that are ``step`` apart."""
    s2, s3, s4, s5 = (np.uint64(count * int(step)) for count in range(2, 6))
    b1, b2, b3 = (np.uint64(count * BLOCK) for count in range(1, 4))

    @compiled
    @no_type_check
    def run(scratch, source, target, n):
        for i in range(n):
            j = np.uint64(i)
            f, t = source + j, target + j
            d0, d1, d2, d3 = scratch[f], scratch[f + b1], scratch[f + b2], scratch[f + b3]
            even, odd = d0 + P2 * d2, P * d1 + P3 * d3
            scratch[t] = d0
            scratch[t + step] = even + odd
            scratch[t + s2] = even - odd
            even, odd = d0 + Q2 * d2, Q * d1 + Q3 * d3
            scratch[t + s3] = even + odd
            scratch[t + s4] = even - odd
            scratch[t + s5] = d3

    return run


def _output_transform(step: Any) -> Any:
    """``Aᵀ``: six blocks that are ``step`` apart to four that are ``step`` apart."""
    s2, s3, s4, s5 = (np.uint64(count * int(step)) for count in range(2, 6))

    @compiled
    @no_type_check
    def run(scratch, source, target, n):
        for i in range(n):
            j = np.uint64(i)
            f, t = source + j, target + j
            even, odd = scratch[f + step] + scratch[f + s2], scratch[f + step] - scratch[f + s2]
            even_q, odd_q = scratch[f + s3] + scratch[f + s4], scratch[f + s3] - scratch[f + s4]
            first, last = scratch[f], scratch[f + s5]
            scratch[t] = first + even + even_q
            scratch[t + step] = P * odd + Q * odd_q
            scratch[t + s2] = P2 * even + Q2 * even_q
            scratch[t + s3] = P3 * odd + Q3 * odd_q + last

    return run


_input_rows, _input_columns = _input_transform(ROWS), _input_transform(COLUMNS)
_gradient_rows, _gradient_columns = _gradient_transform(ROWS), _gradient_transform(COLUMNS)
_output_rows, _output_columns = _output_transform(ROWS), _output_transform(COLUMNS)


@compiled
@no_type_check
def _copy(target, to, source, begin, n):
    t, f = np.uint64(to), np.uint64(begin)
    for i in range(n):
        j = np.uint64(i)
        target[t + j] = source[f + j]


@compiled
@no_type_check
def _deal(scratch, source, target, columns):
    """Column s of every tile in a row: number 4 i + s to place i of the s-th column of blocks."""
    for first in range(0, columns, LANES):
        for s in range(6):
            f, t = np.uint64(source + 4 * first + s), np.uint64(target + s * DEALT + first)
            for i in range(LANES):
                j = np.uint64(i)
                scratch[t + j] = scratch[f + FOUR * j]


@compiled
@no_type_check
def _interleave(planes, begin, width, scratch, source):
    whole = width // 4
    f, f1 = np.uint64(source), np.uint64(source + BLOCK)
    f2, f3 = f1 + COLUMNS, f1 + TWO * COLUMNS
    for i in range(whole):
        j = np.uint64(i)
        t = np.uint64(begin) + FOUR * j
        planes[t] = scratch[f + j]
        planes[t + ONE] = scratch[f1 + j]
        planes[t + TWO] = scratch[f2 + j]
        planes[t + THREE] = scratch[f3 + j]
    for x in range(4 * whole, width):
        planes[begin + x] = scratch[source + (x - 4 * whole) * BLOCK + whole]


@compiled
@no_type_check
def planes_to_tiles(first, last, planes, height, width, tiles, channels, count, padding, rows, columns, gradient):
    """``Bᵀ d B`` of planes ``first`` to ``last``, or ``A d Aᵀ`` of an output's gradient.

    Args:
        planes: (images * channels * height * width,).
        tiles: (36 * channels * count,), to be filled; ``count`` tiles in all images, ``rows`` x ``columns`` in one.
        padding: zeros before the first row and column; behind the last, tiles are filled up with zeros.
    """
    pitch = 4 * (columns + LANES) + 4
    padded = 60 * BLOCK
    scratch = np.zeros(padded + (4 * rows + 2) * pitch, np.float32)
    sources, further = (4, 0) if gradient else (6, 2)
    group = (BLOCK - LANES) // columns - 1
    for p in range(first, last):
        begin = p % channels * count + p // channels * rows * columns
        for y in range(min(height, 4 * rows + further - padding)):
            _copy(scratch, padded + (y + padding) * pitch + padding, planes, (p * height + y) * width, width)
        for top in range(0, rows, group):
            height_in_tiles = min(group, rows - top)
            n = height_in_tiles * columns
            for y in range(4 * height_in_tiles + further):
                _deal(scratch, padded + (4 * top + y) * pitch, y % 4 * BLOCK + y // 4 * columns, columns)
            for s in range(sources):
                source, target = np.uint64(s * DEALT), np.uint64((24 + s) * BLOCK)
                if gradient:
                    _gradient_rows(scratch, source, target, n)
                else:
                    _input_rows(scratch, source, np.uint64(s * DEALT + columns), target, n)
            for r in range(6):
                source, target = np.uint64((24 + 6 * r) * BLOCK), np.uint64(0)
                if gradient:
                    _gradient_columns(scratch, source, target, n)
                else:
                    _input_columns(scratch, source, source + FOUR * COLUMNS, target, n)
                for s in range(6):
                    _copy(tiles, (6 * r + s) * channels * count + begin + top * columns, scratch, s * BLOCK, n)


@compiled
@no_type_check
def tiles_to_planes(first, last, tiles, channels, count, planes, height, width, rows, columns):
    """``Aᵀ m A`` into planes ``first`` to ``last``; the arguments as in :func:`planes_to_tiles`."""
    scratch = np.empty(60 * BLOCK, np.float32)
    group = BLOCK // columns
    for p in range(first, last):
        begin = p % channels * count + p // channels * rows * columns
        for top in range(0, rows, group):
            height_in_tiles = min(group, rows - top)
            n = height_in_tiles * columns
            for k in range(36):
                _copy(scratch, k * BLOCK, tiles, k * channels * count + begin + top * columns, n)
            for s in range(6):
                _output_rows(scratch, np.uint64(s * BLOCK), np.uint64((36 + s) * BLOCK), n)
            for a in range(4):
                _output_columns(scratch, np.uint64((36 + 6 * a) * BLOCK), np.uint64(0), n)
                for y in range(height_in_tiles):
                    row = 4 * (top + y) + a
                    if row < height:
                        _interleave(planes, (p * height + row) * width, width, scratch, y * columns)

"""Winograd's F(4 x 4, 3 x 3): its points, its filter transform, and how tiles lie in memory."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

POINTS = (0.75, 1.5)
"""p and q. Half the error of 1 and 2, and all their products are exact."""

BLOCK = 160
"""Numbers in a block of the scratch array; one for each tile. A multiple of it apart, no block overlaps another, which
the compiler sees only where it is a constant."""

LANES = 8
"""Tiles that are read at once. A row's last ones run over into the next row, which is written after it."""


def filter_transform() -> Float[np.ndarray, "6 3"]:
    """``G`` for the points 0, ±p, ±q, infinity: row k is ``(1, x_k, x_k²) / prod_{j≠k} (x_k - x_j)`` (Lavin, 2016).

    >>> filter_transform()[5]
    array([0., 0., 1.])
    """
    p, q = POINTS
    points = [0.0, p, -p, q, -q]
    rows = [[x**power / np.prod([x - y for y in points if y != x]) for power in range(3)] for x in points]
    return np.array([*rows, [0.0, 0.0, 1.0]])


# (36, 9): both axes at once.
FILTER_TRANSFORM = torch.from_numpy(np.kron(filter_transform(), filter_transform()).astype(np.float32))

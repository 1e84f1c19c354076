"""Masks from all bits of a key, in the place of Flower's, which can be found by trying every seed."""

from __future__ import annotations

import hashlib
from importlib import import_module
from math import prod

import numpy as np

from shadow_defense.errors import RunError

MODULUS = 2**48
"""Sums are taken modulo this, and masks are uniform below it; Flower sends 64 bits for a word anyway."""

WORD_BYTES = 8

USERS = (
    "flwr.client.mod.secure_aggregation.secaggplus_mod",
    "flwr.server.workflow.secure_aggregation.secaggplus_workflow",
)
"""The modules of Flower that draw masks, on the client's side and on the server's."""

DRAWS = "pseudo_rand_gen"


def masks(seed: bytes, num_range: int, dimensions_list: list[tuple[int, ...]]) -> list[np.ndarray]:
    """One array of int64 in ``[0, num_range)`` for each shape: words of SHAKE-128 over the whole key, in a row.

    Flower folds the key to 32 bits (28 for those that two clients share, whose letters have 7 bits each) and hands
    them to the Mersenne Twister: whoever tries all of them takes the masks off (flwrlabs/flower#7522; so in 1.42).
    Keys are new in every round, so that no mask is used twice.

    Args:
        num_range: :data:`MODULUS`; arguments are named as Flower names them.

    >>> [mask.shape for mask in masks(bytes(32), MODULUS, [(2, 3), ()])]
    [(2, 3), ()]
    """
    if num_range != MODULUS:
        raise RunError(f"the server asks for sums modulo {num_range}: expected {MODULUS}")
    counts = [prod(shape) for shape in dimensions_list]
    stream = hashlib.shake_128(seed).digest(WORD_BYTES * sum(counts))
    words = np.frombuffer(stream, dtype="<i8") & (MODULUS - 1)
    parts = np.split(words, np.cumsum(counts)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, dimensions_list, strict=True)]


def use_own_masks() -> None:
    """Let Flower's protocol draw its masks here, from now on in this process.

    Never taken back: a thread that did so could leave another one with weak masks.

    Raises:
        RunError: where this version of Flower draws them elsewhere; then nothing must be sent.
    """
    for name in USERS:
        module = import_module(name)
        if not hasattr(module, DRAWS):
            raise RunError(
                "this version of Flower draws the masks of SecAgg+ in another place: install flwr 1.40 to 1.42, or "
                "take another engine"
            )
        setattr(module, DRAWS, masks)

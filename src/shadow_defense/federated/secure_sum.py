"""Secure aggregation by pairwise masks (Bonawitz et al. 2017): the server learns the sum, no single update.

Client i sends ``q(x_i) + sum_{j>i} PRG(s_ij) - sum_{j<i} PRG(s_ij)  (mod 2^32)`` where ``q`` is fixed point and
``s_ij`` is a secret that clients i and j share. In the sum over all clients every mask appears once with each sign.

Left out of that protocol: key agreement (:func:`pair_secrets` stands in for it), the second mask and the secret
sharing that let the server go on when a client drops out. Here every client must answer. A server that lies about who
takes part is outside of what this protects against.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64, UInt32
from torch import Tensor

from shadow_defense.errors import UpdateError

FRACTION_BITS = 24
"""Bits behind the binary point: steps of 6e-8, and room for averages up to 128 in 32 bits."""

WORD_BYTES = 4

Secrets = Mapping[frozenset[str], bytes]
"""What each pair of clients shares, and nobody else."""


def pair_secrets(clients: Sequence[str], seed: int) -> dict[frozenset[str], bytes]:
    """One secret of 32 bytes for each pair of clients.

    A stand-in for key agreement: in a deployment every pair derives it from two public keys and the seed does not
    exist. Draws are named, so that a simulation can be repeated.
    """
    return {
        frozenset(pair): hashlib.sha256("\x1f".join(("secure sum", str(seed), *sorted(pair))).encode()).digest()
        for pair in itertools.combinations(clients, 2)
    }


def pair_mask(secret: bytes, round: int, count: int) -> UInt32[np.ndarray, " n"]:
    """``PRG(s_ij)``: ``count`` words of SHAKE-128 over the secret and the round, so that no mask is used twice."""
    stream = hashlib.shake_128(secret + round.to_bytes(8, "little")).digest(WORD_BYTES * count)
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32)


def to_fixed_point(values: Float64[Tensor, " n"], clients: int) -> UInt32[np.ndarray, " n"]:
    """``round(x 2^24) mod 2^32``: negative values wrap around.

    Args:
        values: what one of ``clients`` clients adds to the sum.

    Raises:
        UpdateError: when the sum of so many such values might not fit.

    >>> to_fixed_point(torch.tensor([1.0, -2.0**-24], dtype=torch.float64), 2).tolist()
    [16777216, 4294967295]
    """
    limit = 2.0 ** (31 - FRACTION_BITS) / clients
    largest = float(values.abs().max()) if len(values) else 0.0
    # Written so that NaN is refused too.
    if not largest < limit:
        raise UpdateError(
            f"a value of {largest:.3g} is too large for the secure sum of {clients} clients: expected less than "
            f"{limit:.3g}; lower the learning rate or clip the update"
        )
    return (values * 2.0**FRACTION_BITS).round().long().numpy().astype(np.uint32)


def from_fixed_point(words: UInt32[np.ndarray, " n"]) -> Float64[Tensor, " n"]:
    """The inverse of :func:`to_fixed_point`, to half a step."""
    return torch.from_numpy(words.astype(np.int32).astype(np.float64)) / 2.0**FRACTION_BITS


def add_masks(
    words: UInt32[np.ndarray, " n"], client: str, clients: Sequence[str], secrets: Secrets, round: int
) -> UInt32[np.ndarray, " n"]:
    """What ``client`` sends: its words plus its masks with later clients, minus those with earlier ones, mod 2^32."""
    masked, own = words.copy(), clients.index(client)
    for place, other in enumerate(clients):
        if place != own:
            mask = pair_mask(secrets[frozenset((client, other))], round, len(words))
            masked = masked + mask if place > own else masked - mask
    return masked


def sum_masked(masked: Sequence[UInt32[np.ndarray, " n"]]) -> UInt32[np.ndarray, " n"]:
    """What the server computes: the sum of all that it received, mod 2^32, in which the masks cancel."""
    return np.add.reduce(list(masked), dtype=np.uint32)

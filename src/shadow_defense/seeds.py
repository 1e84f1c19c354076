"""Named random generators: every random draw of the project comes from one of these."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SECRET = 2**64
"""A seed from here on is a site's secret (:func:`shadow_defense.federated.site_secret.secret_seed`)."""

STATE_WORDS = 624
"""Of 32 bits, in the state of PyTorch's generator (MT19937)."""

STATE_BYTES, FIRST_WORD = 5056, 3
"""Size of that state as PyTorch gives it, in which each word takes eight bytes, and where the first of them stands."""


class SecretGenerator(torch.Generator):
    """Of a :data:`SECRET`. What it draws for :func:`standard_normal` and :func:`uniform` tells nothing of the rest.

    MT19937 alone is linear: who knows some hundred of its values (the noise on a picture's black border) solves for its
    state, and so for all others.
    """


def seed_for(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from one seed and the names of what is drawn; from a :data:`SECRET`, one of 256 bits.

    The same names give the same number on every machine, and no draw shifts another: a round, a client
    or a sample can be recomputed alone.

    >>> seed_for(0, "latents", "train/7") == seed_for(0, "latents", "train/7")
    True
    >>> seed_for(0, "latents", "train/7") == seed_for(1, "latents", "train/7")
    False
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.sha256(text.encode()).digest()
    if seed >= SECRET:
        # The highest bit keeps it a secret.
        return int.from_bytes(digest, "big") | 1 << 255
    return int.from_bytes(digest[:8], "big") >> 1


def named_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator of its own for these names.

    Of a seed PyTorch uses the lower 32 bits, which is enough to repeat a run. It would not hide noise: who tries all of
    them takes it off again. From a :data:`SECRET` the whole state is filled, by SHAKE-256 of the 256 derived bits.
    """
    derived = seed_for(seed, *names)
    if derived < SECRET:
        return torch.Generator().manual_seed(derived)
    draws = SecretGenerator().manual_seed(0)
    state = draws.get_state()
    if state.numel() != STATE_BYTES:
        raise RuntimeError(
            "this version of PyTorch keeps the state of its generator in another form: draws are refused"
        )
    stream = hashlib.shake_256(derived.to_bytes(32, "big")).digest(4 * STATE_WORDS)
    words = torch.frombuffer(bytearray(stream), dtype=torch.int32).long() & 0xFFFFFFFF
    state.view(torch.int64)[FIRST_WORD : FIRST_WORD + STATE_WORDS] = words
    draws.set_state(state)
    return draws


def uniform(shape: Sequence[int], draws: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Independent numbers of ``shape``, uniform in [0, 1): noise that hides a value is made of these or the next.

    ``torch.rand`` of a plain generator. A :class:`SecretGenerator` gives a key of 256 bits, and SHAKE-256 of it the
    numbers, 24 bits each as those of ``torch.rand``; the generator's own values are seen by nobody.
    """
    if not isinstance(draws, SecretGenerator):
        return torch.rand(*shape, generator=draws, dtype=dtype)
    return (
        torch.from_numpy((_cipher_words(math.prod(shape), draws) >> 8) / 2**24).view(*shape).to(dtype or torch.float32)
    )


def standard_normal(shape: Sequence[int], draws: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Independent normal numbers of ``shape``, of mean 0 and variance 1.

    ``torch.randn`` of a plain generator; of a :class:`SecretGenerator` by Box and Muller, ``sqrt(-2 ln u) cos(2 pi v)``
    and ``sqrt(-2 ln u) sin(2 pi v)``, of numbers as in :func:`uniform`, at most 6.8 in size.
    """
    if not isinstance(draws, SecretGenerator):
        return torch.randn(*shape, generator=draws, dtype=dtype)
    count = math.prod(shape)
    radii, angles = ((_cipher_words(2 * -(-count // 2), draws) + 0.5) / 2**32).reshape(2, -1)
    lengths, turns = np.sqrt(-2 * np.log(radii)), 2 * np.pi * angles
    pairs = np.stack([lengths * np.cos(turns), lengths * np.sin(turns)], axis=1)
    return torch.from_numpy(pairs.reshape(-1)[:count].copy()).view(*shape).to(dtype or torch.float32)


def standard_exponential(shape: Sequence[int], draws: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Independent exponential numbers of ``shape``, of mean 1: ``-ln(1 - u)`` of a :class:`SecretGenerator`."""
    if not isinstance(draws, SecretGenerator):
        return torch.empty(*shape, dtype=dtype).exponential_(generator=draws)
    return -torch.log1p(-uniform(shape, draws, torch.float64)).to(dtype or torch.float32)


def _cipher_words(count: int, draws: SecretGenerator) -> np.ndarray:
    key = torch.randint(-(2**63), 2**63 - 1, (4,), generator=draws).numpy().tobytes()
    return np.frombuffer(hashlib.shake_256(key).digest(4 * count), dtype="<u4")

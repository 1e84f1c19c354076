"""Named random generators: every random draw of the project comes from one of these."""

from __future__ import annotations

import hashlib

import torch

SECRET = 2**64
"""A seed from here on is a site's secret (:func:`shadow_defense.federated.site_secret.secret_seed`)."""

STATE_WORDS = 624
"""Of 32 bits, in the state of PyTorch's generator (MT19937)."""

STATE_BYTES, FIRST_WORD = 5056, 3
"""Size of that state as PyTorch gives it, in which each word takes eight bytes, and where the first of them stands."""


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
    draws = torch.Generator().manual_seed(0)
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

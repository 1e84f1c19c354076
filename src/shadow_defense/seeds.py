"""Named random generators: every random draw of the project comes from one of these."""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from one seed and the names of what is drawn.

    The same names give the same number on every machine, and no draw shifts another: a round, a client
    or a sample can be recomputed alone.

    >>> seed_for(0, "latents", "train/7") == seed_for(0, "latents", "train/7")
    True
    >>> seed_for(0, "latents", "train/7") == seed_for(1, "latents", "train/7")
    False
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def named_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by :func:`seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, *names))

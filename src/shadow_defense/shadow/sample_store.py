"""Tensors kept by sample id, packed into two tensors so that they can be saved with all others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def pack_samples(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One stacked tensor and the sample ids as UTF-8 bytes of a JSON list; an empty mapping gives {}.

    >>> packed = pack_samples({"train/7": torch.ones(2)})
    >>> list(unpack_samples(packed))
    ['train/7']
    """
    if not samples:
        return {}
    names = torch.frombuffer(bytearray(json.dumps(list(samples)).encode()), dtype=torch.uint8)
    return {"names": names, "values": torch.stack(list(samples.values()))}


def stacked(kept: Mapping[str, Tensor], samples: Sequence[str], like: Tensor) -> Tensor:
    """What is kept of these samples, in their order, on the device and in the type of ``like``."""
    return torch.stack([kept[sample] for sample in samples]).to(like)


def unpack_samples(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`pack_samples`."""
    if not packed:
        return {}
    names = json.loads(bytes(packed["names"].tolist()).decode())
    return dict(zip(names, packed["values"].clone(), strict=True))

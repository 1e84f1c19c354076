"""Where tensors lie."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

CPU = torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors lie: images have to come there too. The host's memory for a model without any."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return CPU if first is None else first.device

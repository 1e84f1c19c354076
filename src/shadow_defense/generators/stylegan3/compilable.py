"""For which tensors the compiled loops can run."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


@cache
def has_compiler() -> bool:
    """Whether numba is installed (extra ``stylegan3``); it is not imported here, which takes long."""
    return importlib.util.find_spec("numba") is not None


def compilable(*tensors: Tensor) -> bool:
    """Whether all are of 32-bit numbers on the CPU, and there is a compiler."""
    return has_compiler() and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)

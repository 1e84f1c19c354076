"""A device that every machine has: values are the processor's own, and mixing the two devices' tensors is an error.

Its tensors call themselves ``meta`` ones, so that autograd, batch norm and convolutions take them. Meta tensors proper
have no values: a loop that looks at a loss ends there. Tests that are marked :data:`DEVICES` run on CUDA as well, where
there is such a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

ELSEWHERE = torch.device("meta")

_MIXING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_PLACES = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
_READ = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default}


class Placed(Tensor):
    """A tensor of the device; ``held`` has its values."""

    held: Tensor
    is_meta = False

    @staticmethod
    def __new__(cls, held: Tensor) -> Placed:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.held!r})"

    def new_tensor(self, data: Any, **given: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": ELSEWHERE, **given})

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """Tensors of Python's numbers are made below what a dispatch mode sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and torch.device(given.get("device") or "cpu") == ELSEWHERE:
            return function(*args, **{**given, "device": None}).to(ELSEWHERE)
        return function(*args, **given)


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, layout = tree_flatten((args, kwargs))
    placed = [each for each in flat if isinstance(each, Placed)]
    wanted = kwargs.get("device")
    moved = wanted is not None and torch.device(wanted) == ELSEWHERE
    if moved:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        flat, layout = tree_flatten((args, kwargs))
    if placed and function not in _MIXING:
        # Places may be given by numbers of the processor, as with CUDA.
        places = args[1] if function in _PLACES else ()
        for each in [each for each in flat if not any(each is place for place in places)]:
            # A number in a tensor may come from the processor, as with CUDA.
            if isinstance(each, Tensor) and not isinstance(each, Placed) and each.dim():
                raise RuntimeError(f"{function}: tensors of two devices, one of them of shape {tuple(each.shape)}")
    held_args, held_kwargs = tree_unflatten([each.held if isinstance(each, Placed) else each for each in flat], layout)
    found = function(*held_args, **held_kwargs)
    if placed and torch.Tag.inplace_view in function.tags:
        # What is told of the shape lies in the tensor itself.
        with torch._C._DisableTorchDispatch():
            function(*args, **kwargs)
    if function in _READ:
        return found
    stays = moved or (bool(placed) and wanted is None)
    if function == torch.ops.aten.copy_.default:
        return args[0]
    own = {id(each.held): each for each in placed}

    def back(each: Any) -> Any:
        if not isinstance(each, Tensor) or not stays:
            return each
        return own[id(each)] if id(each) in own else Placed(each)

    return tree_map(back, found)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """For the block ``meta`` is a device with values."""
    autocast = torch.autocast
    # Fused optimisers have a list of devices, which the planted one is not on.
    optimisers: Any = importlib.import_module("torch.optim.optimizer")
    fused = optimisers._get_fused_kernels_supported_devices

    def known(kind: str, **given: Any) -> Any:
        return autocast("cpu" if kind == "meta" else kind, **given)

    with pytest.MonkeyPatch.context() as patch, _Factories(), _Device():
        patch.setattr(torch, "autocast", known)
        patch.setattr(optimisers, "_get_fused_kernels_supported_devices", lambda: [*fused(), "meta"])
        yield ELSEWHERE


@contextmanager
def cuda() -> Iterator[torch.device]:
    """The first CUDA device; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    yield torch.device("cuda")


DEVICES = pytest.mark.parametrize(("device", "tolerance"), [(elsewhere, 0.0), (cuda, 1e-3)], ids=["planted", "cuda"])
"""``with device() as place``: what is computed there is the processor's own to ``tolerance``."""

"""Programs without Python source, TorchScript and exported ones, as modules whose tensors can be exchanged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shadow_defense.errors import ModelError, shown
from shadow_defense.models.functional import functional_call
from shadow_defense.models.naming import FILES


class Program(Protocol):
    """What computes a model's answers with tensors that it is given."""

    def run(self, tensors: Mapping[str, Tensor], images: Tensor) -> Any: ...

    def set_mode(self, training: bool) -> None: ...


class OpaqueModel(nn.Module):
    """A program's tensors under their own names, and the program as what is done with them.

    A weight of two axes stands in an ``nn.Linear`` of its place, so that the rows of the last layer are found; other
    layers are not known as what they are: hooks see nothing, Grad-CAM++ finds no feature map.

    Args:
        tensors: parameters and buffers by state-dict name, in order.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: its tensors are these.
        self._program = (program,)
        for name, tensor in tensors.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for depth, part in enumerate(path):
                if not hasattr(place, part):
                    linear = depth == len(path) - 1 and last == "weight" and _is_matrix(tensor)
                    place.add_module(part, _linear(tensors, ".".join(path)) if linear else nn.Module())
                place = getattr(place, part)
            if isinstance(tensor, nn.Parameter):
                place.register_parameter(last, tensor)
            else:
                place.register_buffer(last, tensor)

    def train(self, mode: bool = True) -> OpaqueModel:
        self._program[0].set_mode(mode)
        return super().train(mode)

    def forward(self, images: Tensor) -> Any:
        self._program[0].set_mode(self.training)
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return self._program[0].run(tensors, images)


def _is_matrix(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.dim() == 2


def _linear(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    rows, columns = tensors[f"{name}.weight"].shape
    return nn.Linear(columns, rows, bias=f"{name}.bias" in tensors, device="meta")


class _Scripted:
    """TorchScript: its attributes take the tensors, graph and all."""

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        self._scripted = scripted

    def set_mode(self, training: bool) -> None:
        self._scripted.train(training)

    def run(self, tensors: Mapping[str, Tensor], images: Tensor) -> Any:
        for name, tensor in tensors.items():
            *path, attribute = name.split(".")
            reduce(getattr, path, self._scripted)._c.setattr(attribute, tensor)
        return self._scripted(images)


class _Exported:
    """An exported program: it has the mode in which it was exported."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def set_mode(self, training: bool) -> None:
        return

    def run(self, tensors: Mapping[str, Tensor], images: Tensor) -> Any:
        return functional_call(self._module, tensors, (images,))


def load_opaque(path: Path) -> OpaqueModel:
    """The model in an exported program (.pt2) or a TorchScript file (.pt, .ts).

    Loading either runs what its author wrote, within what those formats can say (docs/security.md).

    Raises:
        ModelError: for a file that is not there, or is no such program; a state dict is the usual slip.
    """
    if not path.is_file():
        raise ModelError(f"there is no model at {shown(path)}: give {' or '.join(dict.fromkeys(FILES.values()))}")
    try:
        return _exported(path) if path.suffix == ".pt2" else _scripted(path)
    # Each format has errors of its own for what it cannot read.
    except Exception as error:
        raise ModelError(
            f"{shown(path)} is not {FILES[path.suffix]}: {shown(' '.join(str(error).split()), 160)}; write one with "
            f"torch.{'export.save' if path.suffix == '.pt2' else 'jit.save'} (a state dict goes in as --global)"
        ) from error


def _scripted(path: Path) -> OpaqueModel:
    scripted = torch.jit.load(path, map_location="cpu")
    return OpaqueModel(_Scripted(scripted), _tensors(scripted))


def _exported(path: Path) -> OpaqueModel:
    with _tensors_only(), warnings.catch_warnings():
        # Of torch's own reading, a dozen a file, on which no user can act.
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.export.load(path).module()
    return OpaqueModel(_Exported(module), _tensors(module))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies as the state dict orders them, then of buffers that it leaves out."""
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    found = {**dict(module.state_dict()), **dict(module.named_buffers())}
    copies = {name: tensor.detach().clone() for name, tensor in found.items()}
    return {name: nn.Parameter(copy, trained[name]) if name in trained else copy for name, copy in copies.items()}


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Nothing but tensors is unpickled, whatever torch.load is asked for."""
    flag = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(flag)
    os.environ[flag] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[flag]
        else:
            os.environ[flag] = before

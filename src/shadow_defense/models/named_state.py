"""The tensors of a task model by one name each, whatever they were wrapped in or sent as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shadow_defense.errors import ModelError
from shadow_defense.models.tensor_names import under_own_names

ModelState: TypeAlias = nn.Module | Mapping[str, Tensor | np.ndarray] | Sequence[np.ndarray]
"""A model's tensors: the model, its state dict (of tensors or arrays), or a list of arrays in its order."""

WRAPPERS: dict[str, str] = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes that hold the real model, and under which attribute."""

REFUSED: dict[str, str] = {
    "ScriptModule": "TorchScript",
    "AbstractGradSampleModule": "Opacus",
    "FullyShardedDataParallel": "FSDP",
}
"""Classes whose tensors can't be exchanged for a call, and what makes them."""


def plain_module(model: Any) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and ``torch.compile``, which share its tensors.

    Raises:
        ModelError: for what is no module; for TorchScript, Opacus and FSDP, whose tensors can't be exchanged for the
            duration of a call; for a model with tensors that hold no values yet.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}: expected a torch.nn.Module")
    while (attribute := _attribute_of(model)) is not None:
        model = getattr(model, attribute)
    for module in model.modules():
        for ancestor in type(module).__mro__:
            if ancestor.__name__ in REFUSED:
                raise ModelError(
                    f"the model is wrapped by {REFUSED[ancestor.__name__]}: give the plain module with the same state "
                    "(load_state_dict), as it was before it was wrapped"
                )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(f"the model's tensor '{name}' holds no values yet: run one batch through it, or load it")
    return model


def _attribute_of(model: nn.Module) -> str | None:
    return next((WRAPPERS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in WRAPPERS), None)


def reached_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, by every name that they can be reached by: a shared one has several."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))


def first_names(reached: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name the first of the same tensor.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> first_names(reached_tensors(nn.Sequential(layer, layer)))
    {'0.weight': '0.weight', '1.weight': '0.weight'}
    """
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(id(tensor), name) for name, tensor in reached.items()}


def named_state(model: nn.Module, state: ModelState) -> dict[str, Tensor]:
    """The tensors of ``state``, detached, each once and under its first name in ``model``.

    Args:
        state: of the same architecture; prefixes that DataParallel and ``torch.compile`` put before names are taken
            off. Buffers that no state dict holds (``persistent=False``) are the model's own where the state has none.

    Raises:
        ModelError: naming a tensor that only one of the two has, or whose shape differs.
    """
    # One walk through the model: of small networks each takes as long as a layer.
    reached = reached_tensors(model)
    known = first_names(reached)
    given = _by_name(model, state, known)
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ModelError(
            f"the state holds tensor '{unknown}', which the model lacks: give one of the same architecture"
        )
    found: dict[str, Tensor] = {}
    for name, first in known.items():
        if name in given:
            found.setdefault(first, given[name])
    if len(given) < len(known):
        kept = set(model.state_dict(keep_vars=True))
        for name, first in known.items():
            if name not in given and name not in kept:
                found.setdefault(first, reached[first].detach())
    for name in dict.fromkeys(known.values()):
        if name not in found:
            raise ModelError(f"the state lacks tensor '{name}': give the state dict of the same architecture")
        given_shape, own_shape = tuple(found[name].shape), tuple(reached[name].shape)
        if given_shape != own_shape:
            raise ModelError(
                f"tensor '{name}' has shape {given_shape} in the state but {own_shape} in the model: give the state of "
                "the same architecture with the same number of classes"
            )
    return found


def _by_name(model: nn.Module, state: ModelState, known: Mapping[str, str]) -> dict[str, Tensor]:
    if isinstance(state, nn.Module):
        return {name: tensor.detach() for name, tensor in reached_tensors(plain_module(state)).items()}
    if isinstance(state, Mapping):
        # A module's extra state (get_extra_state) is no tensor and has no gradient: the model's own stays.
        named = {name: value for name, value in state.items() if isinstance(value, Tensor | np.ndarray | np.generic)}
    else:
        if not hasattr(state, "__len__"):
            raise ModelError(
                f"the state is a {type(state).__name__}: expected a module, its state dict, or a list of its arrays"
            )
        names = [name for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)]
        if len(state) != len(names):
            raise ModelError(
                f"the state is a list of {len(state)} arrays but the model's state dict has {len(names)} tensors: give "
                "one of each, in the order of model.state_dict()"
            )
        named = dict(zip(names, state, strict=True))
    try:
        # Arrays that came by wire are often read-only, which torch warns of: hence the copy.
        tensors = {
            name: value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
            for name, value in named.items()
        }
    except (TypeError, ValueError) as error:
        raise ModelError(f"the state holds what is no tensor ({error}): give tensors or arrays of numbers") from error
    return under_own_names(tensors, known, ())[0]

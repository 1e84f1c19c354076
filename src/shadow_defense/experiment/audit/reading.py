"""Update files: of this project, plain safetensors, torch state dicts, npz; as a difference, or as before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from shadow_defense.data.archive import read_arrays
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import DataError, ModelError, RunError, UpdateError, shown
from shadow_defense.experiment.audit.plausibility import check_state
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.states import on_host
from shadow_defense.federated.update import ModelUpdate, state_difference
from shadow_defense.files import read_tensors
from shadow_defense.models.build import conventions
from shadow_defense.models.tensor_names import under_own_names
from shadow_defense.models.weights import read_state

COUNTER = "num_batches_tracked"
"""Batch norm's counter of batches, which many frameworks leave out and no attack reads."""

POLICIES: tuple[SharedBatchNorm, ...] = ("all", "parameters", "stats", "none")


TensorSource: TypeAlias = Path | Mapping[str, Tensor]
"""A file of tensors, or the tensors."""


def said(source: TensorSource, held: str) -> str:
    """What a message calls it: a file's path, or ``held`` for tensors in memory."""
    return str(source) if isinstance(source, Path) else held


def named_tensors(source: TensorSource, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    """Copies of the tensors in memory on the CPU, or what :func:`read_named_tensors` reads."""
    if isinstance(source, Path):
        return read_named_tensors(source, names)
    return {name: tensor.detach().cpu().clone() for name, tensor in source.items() if isinstance(tensor, Tensor)}


def read_named_tensors(path: Path, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .npz file; nothing but tensors is unpickled.

    Args:
        names: of the model's tensors in order; they replace ``arr_0``, ``arr_1`` of an .npz, which is how a list of
            arrays is saved (Flower's clients send such lists, in the order of the state dict). None: kept, in order.

    Raises:
        UpdateError: when the file is missing, damaged, of another kind, a pickle of anything else, or its arrays are
            not as many as the model's tensors.
    """
    if path.suffix == ".npz":
        return _read_arrays(path, names)
    try:
        return read_state(path)
    except ModelError as error:
        raise UpdateError(str(error).replace("weights ", "tensors ", 1)) from error


def _read_arrays(path: Path, names: tuple[str, ...] | None) -> dict[str, Tensor]:
    try:
        arrays = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    except (DataError, TypeError, ValueError) as error:
        raise UpdateError(f"{shown(path)} is no .npz of one array a tensor: {error}") from error
    if set(arrays) != {f"arr_{index}" for index in range(len(arrays))}:
        return arrays
    # Sorted by name, arr_10 would come before arr_2.
    ordered = [arrays[f"arr_{index}"] for index in range(len(arrays))]
    if names is None:
        return {f"arr_{index}": array for index, array in enumerate(ordered)}
    if len(ordered) != len(names):
        raise UpdateError(
            f"{path} holds {len(ordered)} unnamed arrays and the model {len(names)} tensors: give one a tensor, in the "
            "order of the state dict, or name them"
        )
    return dict(zip(names, ordered, strict=True))


@dataclass(frozen=True)
class UpdateFiles:
    """Reads the files of one round of ``model``, whatever wrote them.

    Attributes:
        samples, steps: of the local training; None: as an update's own file says.
        notes: get what was renamed, in sentences.
    """

    model: nn.Module
    samples: int | None = None
    steps: int | None = None
    notes: list[str] = field(default_factory=list)

    def global_state(self, given: TensorSource) -> dict[str, Tensor]:
        """The global model before the round, complete, in the model's own types.

        Raises:
            UpdateError: naming the tensor that is missing, unexpected, of another shape, or not finite.
        """
        own, found = on_host(self.model.state_dict()), self._under_own_names(given)
        counters = frozenset(name for name in own if name.endswith(COUNTER))
        _check(found, own, f"the state {said(given, 'before')}", absent=counters)
        return {name: found.get(name, tensor).to(tensor.dtype) for name, tensor in own.items()}

    def difference(self, given: TensorSource, state: Mapping[str, Tensor]) -> ModelUpdate:
        """The update that was given, a difference to ``state``. Raises :class:`UpdateError` where it is none."""
        return self._update(self._under_own_names(given), _metadata(given), given, state)

    def after(self, given: TensorSource, state: Mapping[str, Tensor]) -> ModelUpdate:
        """The update from ``state`` to the client's state. Raises :class:`UpdateError` where it is none."""
        found, what = self._under_own_names(given), said(given, "the state after")
        _check(found, self.model.state_dict(), f"the state {said(given, 'after')}", _absent(found, self.model))
        shared = {name: tensor for name, tensor in state.items() if name in found}
        found = {name: found[name].to(tensor.dtype) for name, tensor in shared.items()}
        check_state(found, state, self.model, what)
        return self._update(state_difference(shared, found), {}, given, state)

    def _under_own_names(self, given: TensorSource) -> dict[str, Tensor]:
        own = tuple(self.model.state_dict())
        tensors, renamed = under_own_names(named_tensors(given, own), own, conventions())
        self.notes.extend(f"{said(given, 'The tensors')}: {each}." for each in renamed)
        return tensors

    def _update(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, object],
        given: TensorSource,
        state: Mapping[str, Tensor],
    ) -> ModelUpdate:
        absent = _absent(tensors, self.model)
        _check(tensors, state, f"the update {said(given, 'given')}", absent)
        samples = metadata.get("samples") if self.samples is None else self.samples
        if not isinstance(samples, int):
            raise UpdateError(f"{said(given, 'the update')} does not say how many images it comes from: give --samples")
        steps = metadata.get("steps", 0) if self.steps is None else self.steps
        return ModelUpdate(
            {name: tensor.detach().to(state[name].dtype) for name, tensor in tensors.items()},
            samples,
            steps if isinstance(steps, int) else 0,
            0,
            str(metadata.get("client", given.stem if isinstance(given, Path) else "client")),
            tuple(sorted(absent)),
        )


def _metadata(given: TensorSource) -> dict[str, object]:
    """What this project writes beside the tensors; {} for every other source."""
    if not isinstance(given, Path) or given.suffix != ".safetensors":
        return {}
    try:
        metadata = read_tensors(given)[1]
    except RunError:
        # Another project's own entry under the same key: its tensors have been read already.
        return {}
    return metadata if metadata.get("kind") == "update" else {}


def _absent(given: Mapping[str, Tensor], model: nn.Module) -> frozenset[str]:
    """What of the model may be, and is, missing: batch norm that stays with the client by one of the policies."""
    missing = frozenset(model.state_dict()) - frozenset(given)
    for policy in POLICIES:
        withheld = withheld_names(model, policy)
        if withheld <= missing and all(name.endswith(COUNTER) for name in missing - withheld):
            return missing
    return frozenset()


def _check(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, absent: frozenset[str] = frozenset()
) -> None:
    for name, tensor in expected.items():
        if name not in given and name not in absent:
            raise UpdateError(f"{what} lacks tensor '{name}': give one of this very model (--model)")
        if name in given and given[name].shape != tensor.shape:
            raise UpdateError(
                f"{what}: tensor '{name}' has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}: give "
                "one of this very model (--model), for images of the same size (data.image_size)"
            )
    for name, tensor in given.items():
        if name not in expected:
            raise UpdateError(f"{what} has an unexpected tensor '{name}': give one of this very model (--model)")
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise UpdateError(f"{what}: tensor '{name}' is of {tensor.dtype}: expected real numbers")
        if not torch.isfinite(tensor).all():
            raise UpdateError(
                f"{what}: tensor '{name}' holds NaN or infinity, so that it can be nobody's training; give the file "
                "as the client sent it"
            )

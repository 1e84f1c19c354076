"""ModelUpdate: what leaves a client, and what every attack starts from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shadow_defense.errors import RunError, UpdateError
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.validation import validated

ALL_CLIENTS = "all-clients"
"""Whose update an average is called, where the server sees no single one (secure aggregation)."""


MOST_COUNTED = 10**9
"""Images, or steps, that no client has more of: a count beyond it would drown all others in an average."""


class _Metadata(BaseModel):
    """What a file says of an update beside its tensors."""

    model_config = ConfigDict(strict=True)

    samples: int = Field(ge=1)
    steps: int = Field(ge=0)
    round: int = Field(ge=0)
    client: str
    # Updates were written without the list before there was a choice of what to share.
    withheld: tuple[str, ...] = Field((), strict=False)


@dataclass(frozen=True)
class ModelUpdate:
    """The difference that a client uploads: parameters and buffers, after minus before.

    Attributes:
        tensors: by state-dict name; integer counters stay integers.
        samples: the client's number of training images, its weight in the average.
        steps: optimiser steps taken.
        round: 0-based.
        withheld: names of the model's tensors that stay with the client and are not in ``tensors``, sorted.

    Raises:
        UpdateError: for NaN or infinity, or no samples: such an update must not leave the client.
    """

    tensors: Mapping[str, Tensor]
    samples: int
    steps: int
    round: int
    client: str
    withheld: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UpdateError(f"the update of {self.client} claims {self.samples} samples: expected at least 1")
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UpdateError(
                    f"tensor '{name}' in the update of {self.client} holds NaN or infinity: the update is withheld; "
                    "lower the learning rate or the defense's strength"
                )

    def check_against(self, state: Mapping[str, Tensor], absent: Collection[str] = ()) -> None:
        """Raise :class:`UpdateError` naming the tensor that is missing, unexpected, or of another shape.

        Args:
            absent: the tensors of ``state`` that the agreed policy keeps on clients: they, and no others, must be
                missing.
        """
        for name in state:
            if name not in self.tensors and name not in absent:
                raise UpdateError(f"the update of {self.client} lacks tensor '{name}': give the update of this model")
        for name, tensor in self.tensors.items():
            if name in absent:
                raise UpdateError(
                    f"the update of {self.client} holds tensor '{name}', which stays with the client: leave it out"
                )
            if name not in state:
                raise UpdateError(f"the update of {self.client} has an unexpected tensor '{name}'")
            if tensor.shape != state[name].shape:
                raise UpdateError(
                    f"tensor '{name}' in the update of {self.client} has shape {tuple(tensor.shape)}: "
                    f"expected {tuple(state[name].shape)}"
                )

    def save(self, path: Path) -> None:
        """Write as safetensors, the rest as JSON metadata."""
        metadata = {"kind": "update", "samples": self.samples, "steps": self.steps}
        metadata |= {"round": self.round, "client": self.client, "withheld": list(self.withheld)}
        write_tensors(path, self.tensors, metadata)

    @classmethod
    def load(cls, path: Path, hint: str = "give a file that a training run wrote") -> ModelUpdate:
        """Read what :meth:`save` wrote. Raises :class:`UpdateError`, ending in ``hint``, for any other file."""
        try:
            tensors, metadata = read_tensors(path, hint)
        except RunError as error:
            raise UpdateError(str(error)) from error
        if metadata.get("kind") != "update":
            raise UpdateError(f"{path} holds no model update; {hint}")
        told = validated(_Metadata, metadata, UpdateError, f"{path}: metadata")
        return cls(tensors, told.samples, told.steps, told.round, told.client, told.withheld)


def state_difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``after - before`` for every tensor of a state dict, detached."""
    return {name: after[name].detach() - tensor for name, tensor in before.items()}

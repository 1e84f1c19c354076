"""Where a training's files lie: its journal, the state after its last whole round, and the rounds that were kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from shadow_defense.errors import RunError
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import (
    nest_tensors,
    path_name,
    read_object,
    read_tensors,
    text_of_path_name,
    write_json,
)
from shadow_defense.shadow.sample_store import unpack_samples


def write_journal(folder: Path, rounds_done: int, history: Sequence[Mapping[str, Any]]) -> None:
    """Say that so many whole rounds are done, once all files of their state are written; forget earlier states."""
    # Renamed into place last: a kill before that leaves the previous round's state in force.
    write_json(folder / "history.json", {"rounds_done": rounds_done, "history": list(history)})
    for old in folder.glob("state-*"):
        if old != state_folder(folder, rounds_done):
            shutil.rmtree(old)


def read_journal(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """The number of whole rounds of the training below ``folder``, and what was measured in each.

    Raises :class:`RunError` when the journal is damaged.
    """
    path = folder / "history.json"
    if not path.exists():
        return 0, []
    record = read_object(path, train_again(folder), "rounds_done", "history")
    rounds_done, history = record["rounds_done"], record["history"]
    if not isinstance(history, list) or rounds_done != len(history) or not all(isinstance(e, dict) for e in history):
        raise RunError(f"{path} is no journal of a training; {train_again(folder)}")
    return rounds_done, history


def train_again(folder: Path) -> str:
    """How a training with a damaged file is mended: every draw is named, so that the same numbers come again."""
    return (
        f"delete {folder / 'history.json'} and run the stage `train`, or the same `compare`, again: it begins at round "
        "1, the numbers stay the same"
    )


def state_folder(folder: Path, rounds_done: int) -> Path:
    """Where the state after so many whole rounds lies below a training's folder."""
    return folder / f"state-{rounds_done:04d}"


def round_folder(folder: Path, round: int) -> Path:
    """Where a kept round (0-based) lies below a training's folder.

    >>> round_folder(Path("arm"), 7).as_posix()
    'arm/round-0007'
    """
    return folder / f"round-{round:04d}"


def update_path(folder: Path, round: int, client: str) -> Path:
    """Where a client's update of a kept round (0-based) lies below a training's folder.

    >>> update_path(Path("arm"), 7, "client-1").as_posix()
    'arm/round-0007/update-client-1.safetensors'
    """
    return round_folder(folder, round) / f"update-{path_name(client)}.safetensors"


def explanation_name(client: str) -> str:
    """The file in a kept round's folder with what explains a client's noise."""
    return f"explanation-{path_name(client)}.safetensors"


def read_explanations(folder: Path, round: int, client: str) -> dict[str, dict[str, Tensor]]:
    """What explains a client's noise in a kept round: by sample id, by name; {} where nothing was kept."""
    path = round_folder(folder, round) / explanation_name(client)
    if not path.exists():
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, packed in nest_tensors(read_tensors(path, train_again(folder))[0]).items():
        for sample, tensor in unpack_samples(packed).items():
            found.setdefault(sample, {})[name] = tensor
    return found


def state_name(what: str, client: str) -> str:
    """The file in a state's folder with what a client remembers: of its ``defense``, or its ``own`` tensors."""
    return f"{what}-{path_name(client)}.safetensors"


def kept_updates(folder: Path) -> list[tuple[int, str]]:
    """Round (0-based) and client of every update below a training's folder, as :func:`update_path` takes them."""
    found = []
    for path in sorted(folder.glob("round-*/update-*.safetensors")):
        if matched := re.fullmatch(r"round-(\d+)", path.parent.name):
            client = text_of_path_name(path.stem.removeprefix("update-"))
            found.append((int(matched[1]), ModelUpdate.load(path).client if client is None else client))
    return found

"""The folder that is written: what it was asked for, and what its images were drawn with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shadow_defense.data.duplicates import digests
from shadow_defense.errors import RunError
from shadow_defense.files import is_empty, read_record, read_tensors, write_json, write_tensors
from shadow_defense.protection.whitening import Whitening

ASKED, CONSTANTS, CERTIFICATE, PAGE = "protection.json", "texture.safetensors", "certificate.json", "certificate.html"
MEND = "choose another folder with --out"


@dataclass(frozen=True)
class Constants:
    """What everybody may know of a texture: public images' statistics, directions, and the strength that was chosen."""

    whitening: Whitening
    spared: Float[Tensor, "k j"] | None
    strength: float

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        found = {name: getattr(self.whitening, name) for name in ("mean", "directions", "deviations")}
        return found if self.spared is None else {**found, "spared": self.spared}


def claim(out: Path, asked: dict[str, Any]) -> None:
    """Take a new folder for this protection, or go on in one that was begun for the same.

    Raises:
        RunError: for a folder that holds anything else.
    """
    written = out / ASKED
    if written.exists():
        if read_record(written, MEND, *asked) != asked:
            raise RunError(f"{out} holds another protection, of other images or settings: {MEND}")
    elif not is_empty(out):
        raise RunError(f"{out} is not empty, and nothing is overwritten: {MEND}")
    else:
        write_json(written, asked)


def write_constants(path: Path, constants: Constants) -> None:
    """Keep them, unless they are there: made anew on another machine they could differ in a last digit."""
    if path.exists():
        return
    whitening = constants.whitening
    metadata = {"rest": whitening.rest, "shape": list(whitening.shape), "strength": constants.strength}
    write_tensors(path, constants.tensors(), metadata)


def read_constants(path: Path, mend: str = MEND) -> Constants | None:
    """Those that were kept; None where there are none. Raises :class:`RunError` where they are damaged."""
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path, mend)
    try:
        channels, height, width = metadata["shape"]
        whitening = Whitening(
            tensors["mean"], tensors["directions"], tensors["deviations"], metadata["rest"], (channels, height, width)
        )
        return Constants(whitening, tensors.get("spared"), metadata["strength"])
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {mend}") from error


def hash_of(images: UInt8[Tensor, "n c h w"], labels: Tensor | None = None) -> str:
    """SHA-256 of all images in their order, and of labels."""
    digest = hashlib.sha256(b"".join(digests(images)))
    digest.update((torch.zeros(0) if labels is None else labels).numpy().tobytes())
    return digest.hexdigest()

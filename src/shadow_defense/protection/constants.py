"""What a texture is made of: public images' statistics, directions, and the strength that was chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from shadow_defense.data.duplicates import digests
from shadow_defense.errors import DataError, RunError
from shadow_defense.files import read_tensors, write_tensors
from shadow_defense.placement import CPU
from shadow_defense.progress import Progress
from shadow_defense.protection.directions import Classifier, labels_for, task_directions, train_public_classifier
from shadow_defense.protection.features import MeasuredReader, told_by
from shadow_defense.protection.reader import measure_reader, read_reader
from shadow_defense.protection.settings import TextureName, TextureSettings
from shadow_defense.protection.whitening import Whitening, measure_whitening

KEPT_MEND = "restore it from a copy; if it is deleted, images that are protected anew differ"


READER = "reader."
"""Before the names of its tensors."""


@dataclass(frozen=True)
class Constants:
    """All that everybody may know of a texture."""

    whitening: Whitening
    spared: Float[Tensor, "k j"] | None
    strength: float
    reader: MeasuredReader | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        found = {name: getattr(self.whitening, name) for name in ("mean", "directions", "deviations")}
        if self.spared is not None:
            found["spared"] = self.spared
        if self.reader is not None:
            found["told"] = self.reader.told
            found |= {READER + name: tensor for name, tensor in self.reader.network.state_dict().items()}
        return found


def measure_constants(
    settings: TextureSettings,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    *,
    seed: int,
    progress: Progress,
    classifier: Classifier | None = None,
    device: torch.device = CPU,
) -> Constants:
    """From public images, at the settings' strength.

    Args:
        seed: of the classifier that tells the directions; public too.
        classifier: what tells them, or for features teaches who does; None: one that is trained on the public images,
            on ``device``.

    Raises:
        DataError: for images that say too little, or that have no labels where the texture needs them.
    """
    whitening = measure_whitening(images.float() / 255)
    if not settings.spares:
        return Constants(whitening, None, settings.strength)
    unit = images.float() / 255
    if classifier is None:
        classifier, known = _trained(settings.texture, images, labels, seed, progress, device)
    else:
        known = labels_for(classifier, unit, labels)
        if settings.texture == "features":
            # What is kept is always told by the same network: it learns the answers of the one that is given.
            answers = known if labels is None else classifier.answers(unit)
            classifier, known = _trained(settings.texture, images, answers, seed, progress, device)
    spared = task_directions(
        classifier.model, unit, known, classifier.normalisation, whitening, count=settings.directions, seed=seed
    )
    if settings.texture == "task":
        return Constants(whitening, spared, settings.strength)
    reader = measure_reader(replace(classifier, model=classifier.model.to(CPU)), unit, settings.directions)
    return Constants(whitening, spared, settings.strength, MeasuredReader(reader, told_by(reader, whitening, unit)))


def kept_constants(
    root: Path,
    settings: TextureSettings,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    measure: Callable[[], Constants],
    *asked: object,
) -> Constants:
    """Constants that are made once a site and kept below ``root``, beside its secret.

    Whatever is protected with the same settings and public images is then drawn the same for ever: made anew, with
    another version of a library, they could differ in a last digit, and the draws with them.

    Args:
        measure: makes them where there are none.
        asked: what else they depend on, as JSON holds it.
    """
    named = hashlib.sha256(json.dumps([settings.drawing(), *asked], sort_keys=True).encode())
    named.update(hash_of(images, labels).encode())
    path = root / "protections" / f"{named.hexdigest()}.safetensors"
    return read_or_measured(path, measure, KEPT_MEND)


def read_or_measured(path: Path, measure: Callable[[], Constants], hint: str) -> Constants:
    """Those of a file, or where there is none those that are measured, which then lie there.

    Raises :class:`RunError` where they are damaged.
    """
    kept = read_constants(path, hint)
    if kept is None:
        kept = measure()
        write_constants(path, kept)
    return kept


def write_constants(path: Path, constants: Constants) -> None:
    """Keep them, unless they are there."""
    if path.exists():
        return
    whitening = constants.whitening
    metadata = {"rest": whitening.rest, "shape": list(whitening.shape), "strength": constants.strength}
    write_tensors(path, constants.tensors(), metadata)


def read_constants(path: Path, hint: str) -> Constants | None:
    """Those that were kept; None where there are none. Raises :class:`RunError` where they are damaged."""
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path, hint)
    try:
        channels, height, width = metadata["shape"]
        whitening = Whitening(
            tensors["mean"], tensors["directions"], tensors["deviations"], metadata["rest"], (channels, height, width)
        )
        network = {name.removeprefix(READER): tensor for name, tensor in tensors.items() if name.startswith(READER)}
        reader = MeasuredReader(read_reader(network, whitening.shape), tensors["told"]) if network else None
        return Constants(whitening, tensors.get("spared"), metadata["strength"], reader)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise RunError(f"{path} is damaged: {hint}") from error


def hash_of(images: UInt8[Tensor, "n c h w"], labels: Tensor | None = None) -> str:
    """SHA-256 of all images in their order, and of labels."""
    digest = hashlib.sha256(b"".join(digests(images)))
    digest.update((torch.zeros(0) if labels is None else labels).numpy().tobytes())
    return digest.hexdigest()


def _trained(
    texture: TextureName,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    seed: int,
    progress: Progress,
    device: torch.device,
) -> tuple[Classifier, Int64[Tensor, " n"]]:
    if labels is None:
        raise DataError(
            f"the public images have no labels, which texture {texture} needs: give a folder with a sub-folder a "
            "class or an .npz, a model that tells the classes apart (--model), or --preset covariance"
        )
    # What is read off images that it never saw is worth more of a network that saw them moved; directions are not.
    moved = texture == "features"
    return train_public_classifier(images, labels, seed=seed, moved=moved, progress=progress, device=device), labels

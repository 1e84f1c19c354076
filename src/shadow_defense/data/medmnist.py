"""The MedMNIST collection by name: a file that is there, or a download through the optional package."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.dataset import Parts
from shadow_defense.data.medmnist_classes import MEDMNIST_CLASSES
from shadow_defense.data.npz import read_npz
from shadow_defense.errors import DataError, shown

SIDES = (28, 64, 128, 224)


def read_medmnist(*, source: str, path: Path | None = None, image_size: int | None, channels: int | None) -> Parts:
    """Read the MedMNIST set ``source`` (Yang et al. 2023, doi 10.1038/s41597-022-01721-8) from ``path`` or by download.

    Without a path the optional package ``medmnist`` fetches the smallest of its sizes that is not below
    ``image_size`` into its own folder, once.

    Raises:
        DataError: when the package is missing or the download fails; the remedy is ``data.path``.
    """
    file = path if path is not None else _download(source, image_size)
    return read_npz(path=file, image_size=image_size, channels=channels, classes=MEDMNIST_CLASSES[source])


def _download(name: str, image_size: int | None) -> Path:
    remedy = f"give data.path, a {name}.npz that you already have"
    try:
        import medmnist

        fetch = getattr(medmnist, medmnist.INFO[name]["python_class"])
    # The package prints a line and goes without its classes where its own requirements are missing.
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"'{name}' needs the package medmnist with torchvision ({error}): install them, or {remedy}"
        ) from error
    side = next((side for side in SIDES if side >= (image_size or 28)), SIDES[-1])
    folder = Path.home() / ".medmnist"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(split="train", download=True, root=str(folder), size=side)
    # Whatever the network and that package's own checks lead to.
    except Exception as error:
        raise DataError(
            f"medmnist could not download '{name}' ({shown(error)}): connect to the network, or {remedy}"
        ) from error
    return folder / (f"{name}.npz" if side == 28 else f"{name}_{side}.npz")

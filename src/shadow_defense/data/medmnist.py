"""The MedMNIST collection by name: a file that is there, or a download through the optional package."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from shadow_defense.data.dataset import Parts
from shadow_defense.data.npz import read_npz
from shadow_defense.data.source import Source
from shadow_defense.errors import DataError, shown
from shadow_defense.registry import NoOptions

ORGANS = (
    "bladder",
    "left femur",
    "right femur",
    "heart",
    "left kidney",
    "right kidney",
    "liver",
    "left lung",
    "right lung",
    "pancreas",
    "spleen",
)

# The two-dimensional sets with one label an image, and their classes in label order (medmnist.INFO).
MEDMNIST_CLASSES: dict[str, tuple[str, ...]] = {
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocyte",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "breastmnist": ("malignant", "normal or benign"),
    "dermamnist": (
        "actinic keratosis or intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesion",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevus",
        "vascular lesion",
    ),
    "octmnist": ("choroidal neovascularisation", "diabetic macular oedema", "drusen", "normal"),
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    "tissuemnist": (
        "collecting duct or connecting tubule",
        "distal convoluted tubule",
        "glomerular endothelial cells",
        "interstitial endothelial cells",
        "leukocytes",
        "podocytes",
        "proximal tubule segments",
        "thick ascending limb",
    ),
    "organamnist": ORGANS,
    "organcmnist": ORGANS,
    "organsmnist": ORGANS,
}

SIDES = (28, 64, 128, 224)


def read_medmnist(name: str, *, path: Path | None = None, image_size: int | None, channels: int | None) -> Parts:
    """Read the MedMNIST set ``name`` (Yang et al. 2023, doi 10.1038/s41597-022-01721-8) from ``path`` or by download.

    Without a path the optional package ``medmnist`` fetches the smallest of its sizes that is not below
    ``image_size`` into its own folder, once.

    Raises:
        DataError: when the package is missing or the download fails; the remedy is ``data.path``.
    """
    file = path if path is not None else _download(name, image_size)
    return read_npz(path=file, image_size=image_size, channels=channels, classes=MEDMNIST_CLASSES[name])


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


MEDMNIST = tuple(
    Source(
        name,
        f"MedMNIST: {len(classes)} classes; from data.path, or downloaded",
        NoOptions,
        partial(read_medmnist, name),
    )
    for name, classes in MEDMNIST_CLASSES.items()
)

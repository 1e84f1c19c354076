"""One real chest radiograph, which comes with pydicom-data, among drawn ones: a demo on what hospitals have."""

from __future__ import annotations

from pathlib import Path

import torch

from shadow_defense.data.dataset import ImageSet, Parts
from shadow_defense.data.dicom_image import read_dicom
from shadow_defense.data.images import prepare
from shadow_defense.data.phantom import DEFAULT_SIZE
from shadow_defense.data.phantom_chest import chest_phantom
from shadow_defense.errors import DataError

RADIOGRAPH = "RG1_UNCI.dcm"

SIZES = (1, 1, 1, 1, 16, 32)
"""Training images of each client; the first one's is the radiograph."""

TEST, VALIDATION = 40, 20

LEAST = sum(SIZES) + TEST + VALIDATION + 50


def find_radiograph() -> Path | None:
    """Where the radiograph lies; None where pydicom-data is not installed. Nothing is downloaded."""
    from pydicom.data import get_testdata_file

    found = get_testdata_file(RADIOGRAPH, download=False)
    return None if found is None else Path(str(found))


def read_radiograph(*, images: int, image_size: int | None, channels: int | None, seed: int) -> Parts:
    """The radiograph at the first client, the chest phantoms of ``seed`` at the others and in all other parts.

    Args:
        images: of all parts together.

    Raises:
        DataError: where pydicom-data is not installed, or for too few images.
    """
    path = find_radiograph()
    if path is None:
        raise DataError(
            "source 'radiograph' reads a file of the package pydicom-data, which is not installed: pip install "
            "'shadow-defense[radiograph]', or take source chest_phantom"
        )
    if images < LEAST:
        raise DataError(f"data.images {images}: expected at least {LEAST} for the clients, a test and public images")
    drawn = chest_phantom(images=images - 1, image_size=image_size, channels=channels, seed=seed).train
    assert drawn.masks is not None
    real = prepare(read_dicom(path, None).pixels, image_size or DEFAULT_SIZE, drawn.channels)
    whole = ImageSet(
        torch.cat([real, drawn.images]),
        torch.cat([torch.zeros(1, dtype=torch.long), drawn.labels]),
        ("radiograph", *drawn.sample_ids),
        masks=torch.cat([torch.zeros_like(drawn.masks[:1]), drawn.masks]),
    )
    train, test, validation = (sum(SIZES), sum(SIZES) + TEST, sum(SIZES) + TEST + VALIDATION)
    return Parts(
        whole.subset(range(train)),
        whole.subset(range(test, validation)),
        whole.subset(range(train, test)),
        ("normal", "opacity"),
        public=whole.subset(range(validation, images)),
        clients=tuple(f"client-{number}" for number, size in enumerate(SIZES, start=1) for _ in range(size)),
    )

"""How many bits a file keeps of a grey value."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.data.boundary import reading, without_warnings
from shadow_defense.data.dicom_image import DICOM_SUFFIX, GREY
from shadow_defense.data.picture import FORMATS


def keeps_more_than_bytes(path: Path) -> bool:
    """Whether an image file that was read before stores more than 8 bits of a grey value; of its header alone."""
    with without_warnings(), reading("the image", path, "replace or remove the file"):
        if path.suffix.lower() == DICOM_SUFFIX:
            import pydicom

            tags = ["BitsStored", "PhotometricInterpretation"]
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            return header.PhotometricInterpretation in GREY and int(header.BitsStored) > 8
        from PIL import Image

        with Image.open(path, formats=FORMATS) as image:
            return image.mode[0] in "IF"

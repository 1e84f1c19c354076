"""Whether a patient's image can be recognised in what was rebuilt: one rule, for every page and verdict."""

from __future__ import annotations

from typing import Literal

Recognition = Literal["recognisable", "partly", "not recognisable"]

RECOGNISABLE = 1 / 3
"""Share of the way from the mean image to the true one from which on an image counts as recognisable."""

PARTLY = 0.1
"""Share from which on something of this patient shows."""

TYPICAL = 0.25
"""SSIM that stands for the mean image's where no public images are known: then an SSIM of 0.5 is recognisable."""

RULE = (
    "By how far a reconstruction gets from the mean image, which needs no update, to the true image, in SSIM: "
    "recognisable from a third of the way on, partly from a tenth on, else not recognisable."
)


def share_of_the_way(similarity: float, mean_image: float | None) -> float:
    """``(s - m) / (1 - m)``: 0 is the mean image, 1 the true image, below 0 is further off than the mean image.

    Args:
        similarity: s, SSIM of the reconstruction to the true image.
        mean_image: m, SSIM of the mean of public images to it; below 0 it counts as 0. None: :data:`TYPICAL`.

    >>> round(share_of_the_way(0.75, 0.5), 3), share_of_the_way(0.25, None), share_of_the_way(1.0, 1.0)
    (0.5, 0.0, 0.0)
    """
    known = TYPICAL if mean_image is None else max(mean_image, 0.0)
    return (similarity - known) / (1 - known) if known < 1 else 0.0


def recognition(similarity: float, mean_image: float | None) -> Recognition:
    """What :data:`RULE` says of one reconstruction; arguments as :func:`share_of_the_way`.

    >>> recognition(0.9, 0.3), recognition(0.45, 0.3), recognition(0.31, 0.3), recognition(0.5, None)
    ('recognisable', 'partly', 'not recognisable', 'recognisable')
    """
    share = share_of_the_way(similarity, mean_image)
    return "recognisable" if share >= RECOGNISABLE else "partly" if share >= PARTLY else "not recognisable"

"""How much of the true images an attack has rebuilt: one row of numbers per reconstruction."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.errors import DataError
from shadow_defense.metrics.foreground import REGIONS, lpips_by_region, psnr_by_region, ssim_by_region
from shadow_defense.metrics.inputs import check_finite, check_unit
from shadow_defense.metrics.lpips import Lpips
from shadow_defense.metrics.matching import UNMATCHED, best_over_client_images, match, pairwise_costs
from shadow_defense.metrics.psnr import pairwise_psnr

METRICS = ("psnr", "ssim", "lpips")

Row = dict[str, float | int | None]


def clamp_unit(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Images clamped to [0, 1]: what an attacker who knows the range of images would do before looking.

    The metrics themselves never clamp; :func:`score_reconstructions` does, with this.

    >>> import torch
    >>> clamp_unit(torch.tensor([-0.5, 0.5, 1.5]).view(1, 1, 1, 3)).flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    return images.clamp(0, 1)


def score_reconstructions(
    reconstructions: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "m c h w"],
    foreground_masks: Bool[Tensor, "m h w"] | Float[Tensor, "m h w"] | None = None,
    lpips_model: Lpips | None = None,
    client_images: Float[Tensor, "k c h w"] | None = None,
) -> list[Row]:
    """One row per reconstruction: the true image it is matched to and how close it comes, by metric and region.

    Reconstructions are clamped to [0, 1] and matched one-to-one to the truths so that the summed PSNR is
    greatest; one match serves all metrics. ``best_match_*`` is the paper's own evaluation: each metric's best
    over all of the client's images, which flatters the attacker (:func:`best_over_client_images`).

    Args:
        reconstructions: as the attack returned them, in the scale of [0, 1] images.
        truths: the images the update was computed from, in [0, 1].
        foreground_masks: one per truth, true or a weight in [0, 1] where the foreground is.
        lpips_model: from :func:`shadow_defense.metrics.lpips.load_lpips`; without it LPIPS is None.
        client_images: all training images of the client, in [0, 1]; the truths where not given.

    Returns:
        Rows with the keys ``reconstruction``, ``truth``, ``{psnr,ssim,lpips}_{whole,inside,outside}`` and
        ``best_match_{psnr,ssim,lpips}``, in the order of the reconstructions. None stands for what does not
        exist: no truth left to match, no mask, an empty region, no LPIPS model.

    Raises:
        DataError: when images are not finite, truths are not in [0, 1], are missing, or shapes differ.
    """
    candidates = truths if client_images is None else client_images
    if len(truths) == 0:
        raise DataError("no true images to score against: give at least one")
    _check_image_shape(reconstructions, truths, "truths")
    _check_image_shape(reconstructions, candidates, "client_images")
    check_finite(reconstructions, "reconstructions")
    check_unit(truths, "truths")
    check_unit(candidates, "client_images")
    if len(reconstructions) == 0:
        return []

    clamped = clamp_unit(reconstructions)
    assignment = match(-pairwise_psnr(clamped, truths))
    costs = pairwise_costs(clamped, candidates, lpips_model)
    best = {metric: best_over_client_images(cost) for metric, cost in costs.items()}
    rows = [_empty_row(index) for index in range(len(clamped))]
    for index, row in enumerate(rows):
        row["best_match_psnr"] = -float(best["psnr"][index])
        row["best_match_ssim"] = -float(best["ssim"][index])
        if lpips_model is not None:
            row["best_match_lpips"] = float(best["lpips"][index])

    matched = (assignment != UNMATCHED).nonzero().flatten()
    chosen = assignment[matched]
    first, second = clamped[matched], truths[chosen]
    masks = None if foreground_masks is None else foreground_masks[chosen]
    values = {"psnr": psnr_by_region(first, second, masks), "ssim": ssim_by_region(first, second, masks)}
    if lpips_model is not None:
        values["lpips"] = lpips_by_region(lpips_model, first, second, masks)
    for place, index in enumerate(matched.tolist()):
        rows[index]["truth"] = int(chosen[place])
        for metric, regions in values.items():
            for region, numbers in regions.items():
                rows[index][f"{metric}_{region}"] = _number(numbers[place])
    return rows


def _check_image_shape(reconstructions: Tensor, images: Tensor, what: str) -> None:
    if reconstructions.shape[1:] != images.shape[1:]:
        raise DataError(
            f"reconstructions are {tuple(reconstructions.shape[1:])} and {what} {tuple(images.shape[1:])} "
            "(channels, height, width): give images of one shape"
        )


def _empty_row(index: int) -> Row:
    row: Row = {"reconstruction": index, "truth": None}
    row.update({f"{metric}_{region}": None for metric in METRICS for region in REGIONS})
    row.update({f"best_match_{metric}": None for metric in METRICS})
    return row


def _number(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number

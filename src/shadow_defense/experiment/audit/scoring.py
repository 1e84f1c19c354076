"""The risk in numbers, image by image, and the limits that it must not pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.audit.case import Case, Gallery
from shadow_defense.metrics.fidelity import clamp_unit, score_reconstructions
from shadow_defense.metrics.identifiability import identifiability_precision, identified, pooled_features
from shadow_defense.metrics.leakage import relative_data_leakage
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.lpips import Lpips
from shadow_defense.metrics.ssim import ssim
from shadow_defense.report.records.audit import AttackEnd, RiskRow

NEAREST = (1, 3, 5)
"""The k of k-IIP, as far as the gallery reaches."""


def check_limits(limits: Sequence[Limit], case: Case) -> None:
    """Raise :class:`ConfigError` for a limit on what cannot be measured: it would never be passed."""
    for limit in limits:
        if case.truths is None:
            raise ConfigError(f"--fail-above {limit.metric} needs the client's images to measure it: give --truth")
        if limit.metric == "rdlv" and case.mean_image is None:
            raise ConfigError("--fail-above rdlv compares with the mean of public images: give --template")
        if limit.metric == "iip" and case.gallery is None:
            raise ConfigError("--fail-above iip looks the images up among others: give --gallery")


def risk_rows(
    images: Float[Tensor, "n c h w"],
    truths: Float[Tensor, "m c h w"],
    mean_image: Float[Tensor, "c h w"] | None,
    lpips: Lpips | None,
) -> list[RiskRow]:
    """One row a reconstruction; ``rdlv`` and ``mean_image_ssim`` where there is a mean image."""
    rows: list[RiskRow] = []
    for scored in score_reconstructions(images, truths, None, lpips):
        image = None if scored["truth"] is None else int(scored["truth"])
        row = RiskRow(
            reconstruction=int(scored["reconstruction"] or 0),
            image=image,
            psnr=scored["psnr_whole"],
            ssim=scored["ssim_whole"],
            lpips=scored["lpips_whole"],
        )
        if mean_image is not None and image is not None:
            before = ssim(mean_image.unsqueeze(0), truths[image].unsqueeze(0))
            relative = relative_data_leakage(torch.tensor([row.ssim]), before).item()
            row = replace(row, mean_image_ssim=before.item(), rdlv=None if math.isnan(relative) else relative)
        rows.append(row)
    return rows


def identify(
    rows: Sequence[RiskRow],
    images: Float[Tensor, "n c h w"],
    gallery: Gallery,
    model: nn.Module,
    normalisation: Normalisation,
) -> tuple[list[RiskRow], dict[str, float]]:
    """The rows with ``iip`` (k = 1) and ``hits`` by k in them, and k-IIP by k.

    Args:
        model: whose features compare images; in the state that was attacked.
    """
    everyone = torch.cat([gallery.own, gallery.others])
    owned = torch.arange(len(everyone)) < len(gallery.own)
    found = pooled_features(model, normalisation.apply(clamp_unit(images)))
    known = pooled_features(model, normalisation.apply(everyone))
    hits = {str(k): identified(found, known, owned, k) for k in NEAREST if k <= len(everyone)}
    each = [{nearest: int(values[place]) for nearest, values in hits.items()} for place in range(len(rows))]
    identified_rows = [replace(row, hits=own, iip=float(own["1"])) for row, own in zip(rows, each, strict=True)]
    return identified_rows, {nearest: identifiability_precision(values) for nearest, values in hits.items()}


def not_known(limits: Sequence[Limit], attacks: Mapping[str, AttackEnd]) -> list[str]:
    """A sentence for each attack whose end tells nothing of the update, so that no limit is known to be kept.

    >>> failed = AttackEnd(verdict="not rebuilt")
    >>> not_known([Limit("ssim", 0.4)], {"dlg": AttackEnd(), "r-gap": failed})
    ['dlg tells nothing of the update, so that no limit is known to be kept']
    """
    return [
        f"{name} tells nothing of the update, so that no limit is known to be kept"
        for name, attack in attacks.items()
        if limits and attack.verdict == "not known"
    ]


def exceeded(limits: Sequence[Limit], attacks: Mapping[str, AttackEnd]) -> list[str]:
    """A sentence for each reconstruction that passes a limit.

    >>> rows = (RiskRow(reconstruction=0, image=0, ssim=0.5), RiskRow(reconstruction=1, image=None))
    >>> exceeded([Limit("ssim", 0.4)], {"dlg": AttackEnd(rows=rows)})
    ['image 1: ssim 0.500 by dlg is above 0.4']
    """
    return [
        f"image {row.image + 1}: {limit.metric} {value:.3f} by {name} is above {limit.value:g}"
        for limit in limits
        for name, attack in attacks.items()
        for row in attack.rows
        for value in [getattr(row, limit.metric)]
        if row.image is not None and value is not None and value > limit.value
    ]

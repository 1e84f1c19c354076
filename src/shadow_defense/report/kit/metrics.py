"""What reconstructions are measured by: how each measure is written, and what a change of it means."""

from __future__ import annotations

from dataclasses import dataclass

from shadow_defense.metrics.confidence import Estimate


@dataclass(frozen=True)
class Metric:
    """How a metric of reconstructions is written and read.

    Attributes:
        higher_is_closer: whether a higher value means a reconstruction closer to the true image; None: not known.
    """

    label: str
    unit: str
    digits: int
    higher_is_closer: bool | None
    explanation: str

    @property
    def title(self) -> str:
        """Label and unit, for the head of a column or a chart."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def better_when(self) -> str:
        """Which direction is better for the client, in words; empty where it is not known.

        >>> METRICS["ssim"].better_when, METRICS["lpips"].better_when
        ('lower is better protected', 'higher is better protected')
        """
        if self.higher_is_closer is None:
            return ""
        return f"{'lower' if self.higher_is_closer else 'higher'} is better protected"


FIDELITY: dict[str, Metric] = {
    "psnr": Metric(
        "PSNR",
        "dB",
        2,
        True,
        "Peak signal-to-noise ratio, 10 log₁₀(1 / mean squared error) in decibels. Higher: the reconstruction is "
        "closer to the true image. 3 dB less means twice the squared error.",
    ),
    "ssim": Metric(
        "SSIM",
        "",
        3,
        True,
        "Structural similarity, at most 1. Higher: edges and textures are where they are in the true image.",
    ),
    "lpips": Metric(
        "LPIPS",
        "",
        3,
        False,
        "Learned perceptual distance, 0 for equal images. Lower: the reconstruction looks more like the true image "
        "to a trained network.",
    ),
}
"""Against the true image, whole or by region."""

METRICS: dict[str, Metric] = {
    **FIDELITY,
    "psnr_of_mean_error": Metric(
        "PSNR of the mean error",
        "dB",
        2,
        True,
        "10 log₁₀(1 / squared error), of the squared error averaged over all images. Images that are rebuilt badly "
        "weigh more in it than in the mean of PSNRs, which is never below it. The bound of linear removers is one of "
        "this measure alone.",
    ),
    "rdlv": Metric(
        "RDLV",
        "",
        3,
        True,
        "Relative data leakage value: by how large a share the reconstruction's SSIM exceeds that of the mean of "
        "public images, which an attacker has without any update. 0: nothing learnt; 1: twice as similar.",
    ),
    "iip": Metric(
        "IIP",
        "",
        0,
        True,
        "Image identifiability: 1 where the gallery image nearest to the reconstruction, by the model's own features, "
        "is one of the client's. k-IIP is the mean number of the client's among the k nearest, from 0 to k.",
    ),
}

REGIONS: dict[str, str] = {
    "whole": "Whole image",
    "inside": "Inside the foreground",
    "outside": "Outside the foreground",
    "best_match": "Best match over all of the client's images",
    "other": "Other measures",
}


def metric_and_region(key: str) -> tuple[str, str]:
    """The two parts of a metric's key in ``results.json``.

    >>> metric_and_region("psnr_inside"), metric_and_region("best_match_ssim"), metric_and_region("entropy")
    (('psnr', 'inside'), ('ssim', 'best_match'), ('entropy', 'other'))
    """
    if key.startswith("best_match_"):
        return key.removeprefix("best_match_"), "best_match"
    name, _, region = key.rpartition("_")
    return (name, region) if region in ("whole", "inside", "outside") else (key, "other")


def metric_of(key: str) -> Metric:
    """The metric of a key; one that is not in :data:`METRICS` is shown under its own name, without a reading.

    >>> metric_of("psnr_inside").title, metric_of("identity_rank").title
    ('PSNR (dB)', 'identity rank')
    """
    name, _ = metric_and_region(key)
    return METRICS.get(name) or Metric(name.replace("_", " "), "", 3, None, "")


def reading(metric: Metric, difference: Estimate, *, baseline: bool = False) -> str:
    """What a difference to the arm without defense means, in words.

    A difference that is not clear is not spoken of; one without an interval is said to have none. The baseline is
    no protection, so its difference tells who wins, the attack without defense or the baseline.

    >>> reading(METRICS["psnr"], Estimate(-3.0, (-4.0, -2.0), 8))
    'better protected'
    >>> reading(METRICS["lpips"], Estimate(-0.3, None, 1))
    'worse protected (no interval)'
    >>> reading(METRICS["psnr"], Estimate(-3.0, (-7.0, 1.0), 8))
    'no clear difference'
    >>> reading(METRICS["psnr"], Estimate(3.0, (2.0, 4.0), 8), baseline=True)
    'baseline beats attack'
    """
    closer = (difference.mean > 0) == metric.higher_is_closer
    if metric.higher_is_closer is None:
        meaning = "higher" if difference.mean > 0 else "lower"
    elif baseline:
        meaning = "baseline beats attack" if closer else "attack beats baseline"
    else:
        meaning = "worse protected" if closer else "better protected"
    return _if_clear(meaning, difference)


def clearness(difference: Estimate) -> str:
    """Whether a measure of the task changed, in words; nothing is said of a difference without an interval.

    >>> clearness(Estimate(-0.1, (-0.2, -0.05), 3)), clearness(Estimate(-0.1, (-0.2, 0.1), 3))
    ('clearly lower', 'no clear difference')
    """
    if difference.clear() is None:
        return ""
    return _if_clear(f"clearly {'higher' if difference.mean > 0 else 'lower'}", difference)


def _if_clear(meaning: str, difference: Estimate) -> str:
    if difference.mean == 0 or difference.clear() is False:
        return "no clear difference"
    return meaning if difference.clear() else f"{meaning} (no interval)"

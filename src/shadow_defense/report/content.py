"""What a report shows: numbers from ``results.json`` and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ArmPictures:
    """One image in one arm: what the attacker rebuilt, and what the defense did to the image.

    Attributes:
        reconstruction: in [0, 1].
        scores: the image's row of metrics (``psnr_whole``, ``ssim_whole``, ``lpips_whole``, ``..._inside``, ...).
        protected: the image that was trained on, in [0, 1], clamped; None where the batch was not changed.
        noise: what was added, in units of [0, 1] images, signed.
        vulnerability: N3, scaled to [0, 1]: bright where the shadow generator can rebuild the image.
        cam: Grad-CAM++ in [0, 1]: bright where the diagnosis looks.
        rebuilt: what the shadow generator rebuilt, in [0, 1].
    """

    reconstruction: Float[Tensor, "c h w"]
    scores: Mapping[str, float | None]
    protected: Float[Tensor, "c h w"] | None = None
    noise: Float[Tensor, "c h w"] | None = None
    vulnerability: Float[Tensor, "h w"] | None = None
    cam: Float[Tensor, "h w"] | None = None
    rebuilt: Float[Tensor, "c h w"] | None = None


@dataclass(frozen=True)
class Exhibit:
    """One of a client's images in one attacked round, side by side over the arms.

    Attributes:
        round: counted from 1, as people do.
        original: in [0, 1].
        arms: by arm name, in the order of the configuration; the first is without defense.
    """

    sample_id: str
    client: str
    attack: str
    round: int
    class_name: str
    original: Float[Tensor, "c h w"]
    arms: Mapping[str, ArmPictures]


@dataclass(frozen=True)
class Content:
    """All that a report is made from.

    ``results`` is the content of ``results.json``:

    - ``title``, ``seed``, ``created`` (ISO date), ``command``, ``versions`` {name: version};
    - ``config``: the resolved configuration, nested dicts;
    - ``data``: {``name``, ``classes``: [...], ``image_size``: [height, width], ``channels``, ``clients``: {client:
      {``train``, ``validation``, ``test``, ``batch_size``}}, ``public``, ``test``, ``sha256``};
    - ``threat_models``: {attack: text of several lines}; ``attack_settings``: {attack: {name: value}};
    - ``arms``: {arm: {``defense``, ``preset``, ``options``, ``share_bn`` (null: the model has no batch norm),
      ``summary``, ``acts_on``: [...], ``history``: [...], ``test``: {``f1_micro``, ``f1_macro``, ``f1_class_0``, ...,
      ``accuracy``, ``auroc`` (may be null)}}}; a history entry has ``round`` (0-based), ``loss``, ``seconds``,
      ``clients`` {client: {``loss``, maybe ``noise_rms``, ``noise_peak``}} and, in evaluated rounds, ``validation``
      and ``test`` with the same keys as ``test`` above;
    - ``tables``: [{``attack``, ``round`` (from 1; null means all attacked rounds together), ``rows``: [{``arm``,
      ``images``: count, ``metrics``: {metric: {``mean``, ``interval``: [low, high] or null}}, ``difference``:
      {metric: {``mean``, ``interval``}} or null (to the first arm, paired by image)}]}]; the last row of a table is
      the baseline arm ``mean image`` (what an attacker draws without looking at the update);
    - ``verdict``: [sentence, ...] in plain words: does the attack beat the mean image, does each defense lower
      PSNR and SSIM, and at what cost in F1; also what went against the defense;
    - ``notes``: [sentence, ...]: mode the victim trained in, assumptions of the attacks, what metrics mean.
    """

    results: Mapping[str, Any]
    exhibits: tuple[Exhibit, ...] = field(default=())

"""What the report of a comparison shows: numbers from ``comparison.json`` and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shadow_defense.metrics.pareto import pareto_front
from shadow_defense.report.kit.formatting import metric_and_region, metric_named

MEAN_IMAGE = "mean image"
RANDOM_UPDATE = "random update"
BASELINES = (MEAN_IMAGE, RANDOM_UPDATE)
"""The last rows of a table: what an attacker draws without looking, and from noise in place of the update."""


@dataclass(frozen=True)
class ComparisonPictures:
    """One of a client's images, and what one attack rebuilt of it under each defense.

    Attributes:
        model: the name of the task model.
        round: counted from 1, as people do.
        original: in [0, 1].
        rebuilt: in [0, 1], by name of the defense, in the order of the comparison; the first is without defense.
    """

    model: str
    attack: str
    round: int
    client: str
    class_name: str
    original: Float[Tensor, "c h w"]
    rebuilt: Mapping[str, Float[Tensor, "c h w"]]


@dataclass(frozen=True)
class ComparisonContent:
    """All that the report of a comparison is made from.

    A *measure* below is {``mean``, ``interval``: [low, high] or null}. ``comparison`` is JSON-like:

    - ``title``, ``created`` (ISO date), ``command``, ``versions`` {name: version}, ``seeds`` [integers];
    - ``data``: {``name``, ``image_size``: [height, width], ``channels``, ``public``, ``test``, ``clients``: {client:
      {``train``, ``batch_size``, ...}}, ``sha256``: {seed as text: hash}};
    - ``models``: {model: nested settings};
    - ``attacks``: {attack: {``attack``, ``settings``: {...}, ``threat_model``: text of several lines, ``rounds``: from
      1, ``clients``: [...]}};
    - ``defenses``: {name: {``defense``, ``preset``, ``options``, ``summary``, ``acts_on``: [...], ``share_bn``,
      ``family``: the sweep it is a point of (its own name where nothing is swept), ``label``: its strength, short}};
      the first is no defense; points of one family stand in order of strength;
    - ``tables``: [{``model``, ``attack``, ``round`` (from 1; null means all attacked rounds together), ``rows``:
      [{``defense``, ``images``, ``seeds``: counts, ``metrics``: {``psnr_whole``, ``ssim_inside``, ...: measure},
      ``difference``: the same keys, to the first defense, paired by image and seed, or null, ``utility``:
      {``f1_macro``, ``accuracy``, ``auroc``: measure} or null, ``utility_difference``: {``f1_macro``: measure} or
      null, ``cost``: {``time``, ``memory``: ratios to no defense, ``prepare_seconds``} or null, ``epsilon``:
      {``mean``, ``interval``, ``delta``} or null, ``measured``: {name: mean}}]}]; the last rows are
      :data:`BASELINES`; a row of Shadow Defense may hold ``control_difference``: {metric or ``f1_macro``: measure}, to
      its uniform-noise control, paired by image and seed (without it the verdict takes the two as independent);
    - ``planes``: [{``model``, ``attack``, ``metric``: such as ``ssim_whole``, ``points``: [{``defense``, ``privacy``,
      ``utility``: measures, ``on_front``}], ``baseline``: {baseline: mean}}];
    - ``ablations``: in the shape of ``tables``, may be empty;
    - ``failures``: [{``cell``, ``error``: one line}]; ``left_out``: [{``model``, ``defense``, ``reason``}];
    - ``verdict``, ``notes``: [sentence, ...].
    """

    comparison: Mapping[str, Any]
    pictures: tuple[ComparisonPictures, ...] = field(default=())


def goodness(metric: str, point: Mapping[str, Any]) -> tuple[float, float]:
    """Privacy and utility of a plane's point, both better when larger.

    >>> goodness("ssim_whole", {"privacy": {"mean": 0.4}, "utility": {"mean": 0.8}})
    (-0.4, 0.8)
    """
    sign = -1.0 if metric_named(metric_and_region(metric)[0]).higher_is_closer else 1.0
    return sign * point["privacy"]["mean"], point["utility"]["mean"]


def plane_front(metric: str, points: Sequence[Mapping[str, Any]]) -> list[bool]:
    """``on_front`` for the points of a plane of that metric (keys ``privacy`` and ``utility``)."""
    return pareto_front([goodness(metric, point) for point in points])

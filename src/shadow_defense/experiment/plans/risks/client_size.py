"""Risk 5: clients with a single sample are the most exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    NO_DEFENSE,
    UNDEFENDED,
    Risk,
    Trials,
    Values,
    changed,
    differences,
    image_values,
    main_attack,
    mean_of,
)
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.trial import Trial
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.intervals import welch_difference
from shadow_defense.report.records.risks import Finding, Row
from shadow_defense.report.records.scores import MEAN_IMAGE

CLIENTS = {1: 8, 8: 2, 32: 2}
"""How many clients of each size."""


def trials(base: RunConfig, store: Store) -> dict[str, Trial]:
    sizes = [size for size, clients in CLIENTS.items() for _ in range(clients)]
    config = changed(
        base,
        # One step on the whole of a client's images: nothing but their number differs.
        data={"split": {"kind": "sizes", "sizes": sizes, "batch_sizes": sizes}},
        training={"rounds": 1, "local_epochs": 1},
        arms={UNDEFENDED: NO_DEFENSE},
        attacks={ATTACK: main_attack(base, [1], clients=None, longest_client=None)},
    )
    return {"clients": Trial(config, store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["clients"] for trials in seeds]
    size_of = {
        (trial.config.seed, client.name): len(client.train) for trial in found for client in trial.dataset.clients
    }
    gains = {}
    for column in ("psnr", "ssim"):
        attacked, blank = (image_values(found, arm, f"{column}_whole") for arm in (UNDEFENDED, MEAN_IMAGE))
        above = differences(attacked, blank)
        gains[column] = {
            size: {image: gain for image, gain in above.items() if size_of[image[:2]] == size}
            for size in sorted(set(size_of.values()))
        }
    return finding(gains)


def finding(gains: Mapping[str, Mapping[int, Values]]) -> Finding:
    """From PSNR and SSIM above the mean image's, by the client's number of images and by image."""
    psnr = gains["psnr"]
    alone, crowded = (list(psnr[size].values()) for size in (min(psnr), max(psnr)))
    rows = []
    for size, values in psnr.items():
        clients = len({image[:2] for image in values})
        above = {column: mean_of(gains[column][size]) for column in ("psnr", "ssim")}
        rows.append(Row(str(size), {**above, "clients": Estimate(float(clients), None, 1)}))
    return Finding(value=welch_difference(alone, crowded), rows=tuple(rows))


RISK = Risk(
    5,
    "Clients with one image are exposed most: in a larger batch, gradients of several images cover one another.",
    "Clients of 1, 8 and 32 images, each with one step on all of its images, attacked in the first round.",
    trials,
    measure,
)

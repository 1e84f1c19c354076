"""Risk 5: clients with a single sample are the most exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.risk import (
    ATTACK,
    COLUMNS,
    Image,
    Rebuilt,
    Risk,
    Trials,
    changed,
    main_attack,
    means,
    rebuilt,
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
        attacks={ATTACK: main_attack(base, [1], clients=None, longest_client=None)},
    )
    return {"clients": Trial(config, store)}


def measure(seeds: Sequence[Trials]) -> Finding:
    found = [trials["clients"] for trials in seeds]
    size_of = {
        (trial.config.seed, client.name): len(client.train) for trial in found for client in trial.dataset.clients
    }
    attacked, blank = rebuilt(found), rebuilt(found, MEAN_IMAGE)
    gains: dict[int, dict[Image, dict[str, float]]] = {size: {} for size in sorted(set(size_of.values()))}
    for image, own in attacked.items():
        if image in blank:
            gains[size_of[image[:2]]][image] = {column: own[column] - blank[image][column] for column in COLUMNS}
    return finding(gains)


def finding(gains: Mapping[int, Rebuilt]) -> Finding:
    """From what was reached above the mean image, by the client's number of images and by image."""
    alone, crowded = ([gain["psnr"] for gain in gains[size].values()] for size in (min(gains), max(gains)))
    rows = []
    for size, images in gains.items():
        clients = len({image[:2] for image in images})
        rows.append(Row(str(size), {**means(images), "clients": Estimate(float(clients), None, 1)}))
    return Finding(value=welch_difference(alone, crowded), rows=tuple(rows))


RISK = Risk(
    5,
    "Clients with one image are exposed most: in a larger batch, gradients of several images cover one another.",
    "Clients of 1, 8 and 32 images, each with one step on all of its images, attacked in the first round.",
    trials,
    measure,
)

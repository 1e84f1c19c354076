"""Scores averaged over images, with intervals and differences to the first arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.metrics.confidence import Estimate, mean_interval, paired_difference
from shadow_defense.metrics.fidelity import METRICS
from shadow_defense.metrics.foreground import REGIONS
from shadow_defense.report.records.scores import MEAN_IMAGE

COLUMNS = tuple(f"{metric}_{region}" for metric in METRICS for region in REGIONS) + tuple(
    f"best_match_{metric}" for metric in METRICS
)

Image = tuple[str, str]
"""What two arms are paired by: client and sample id."""


def _by_image(scores: Sequence[Score], arm: str, attack: str, round: int | None) -> dict[Image, dict[str, float]]:
    """The columns of each image; over several rounds their mean, since one image's rounds are not independent."""
    collected: dict[Image, dict[str, list[float]]] = {}
    for score in scores:
        if score.arm == arm and score.attack == attack and round in (None, score.round):
            for row in score.rows:
                if row["sample_id"] is not None:
                    image = collected.setdefault((score.client, row["sample_id"]), {})
                    for column in COLUMNS:
                        if row[column] is not None:
                            image.setdefault(column, []).append(row[column])
    return {
        image: {column: sum(values) / len(values) for column, values in columns.items()}
        for image, columns in collected.items()
    }


def _present(images: Mapping[Image, Mapping[str, float]], column: str) -> dict[Image, float]:
    return {image: columns[column] for image, columns in images.items() if column in columns}


def summarise(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and interval as ``results.json`` has them; None without values."""
    return as_record(mean_interval(values)) if values else None


def as_record(measured: Estimate) -> dict[str, Any]:
    """A mean with its interval as plain values."""
    return {"mean": measured.mean, "interval": None if measured.interval is None else list(measured.interval)}


def table(scores: Sequence[Score], arms: Sequence[str], attack: str, round: int | None) -> dict[str, Any]:
    """One table of ``results.json``: a row an arm, the mean image last; ``round`` is 0-based, None for all rounds."""
    reference = _by_image(scores, arms[0], attack, round)
    rows = []
    for arm in (*arms, MEAN_IMAGE):
        images = _by_image(scores, arm, attack, round)
        metrics, difference = {}, {}
        for column in COLUMNS:
            values, others = _present(images, column), _present(reference, column)
            metrics[column] = summarise(list(values.values()))
            both = [image for image in values if image in others]
            if both:
                difference[column] = as_record(
                    paired_difference([values[image] for image in both], [others[image] for image in both])
                )
        rows.append(
            {
                "arm": arm,
                "images": len(images),
                "metrics": {column: value for column, value in metrics.items() if value is not None},
                "difference": None if arm == arms[0] else difference,
            }
        )
    return {"attack": attack, "round": None if round is None else round + 1, "rows": rows}


def all_tables(
    scores: Sequence[Score], arms: Sequence[str], attacks: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """For each attack a table over all its rounds, then one for each round."""
    tables = []
    for attack, rounds in attacks.items():
        tables.append(table(scores, arms, attack, None))
        if len(rounds) > 1:
            tables += [table(scores, arms, attack, round) for round in rounds]
    return tables

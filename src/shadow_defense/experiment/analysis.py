"""From scores and trainings to rows: means with intervals, paired differences, controls, and who is on the front."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.metrics.confidence import Estimate, mean_interval, paired_difference
from shadow_defense.metrics.fidelity import METRICS
from shadow_defense.metrics.foreground import REGIONS
from shadow_defense.metrics.pareto import pareto_front
from shadow_defense.report.records.comparison import PRIVACY, UTILITY
from shadow_defense.report.records.run import Round, Sight
from shadow_defense.report.records.scores import MEAN_IMAGE, Guarantee, Row, ScoreTable

COLUMNS = tuple(f"{metric}_{region}" for metric in METRICS for region in REGIONS) + tuple(
    f"best_match_{metric}" for metric in METRICS
)

Image = tuple[int, str, str]
"""What two arms are paired by: seed, client and sample id. Another seed's client of the same name has others."""

History = Sequence[Round]

Pair = TypeVar("Pair", bound=Hashable)


def by_image(scores: Iterable[Score], arm: str, attack: str, round: int | None = None) -> dict[Image, dict[str, float]]:
    """The metrics of each image; over several rounds their mean, since one image's rounds are not independent.

    Args:
        round: 0-based; None for all rounds together.
    """
    collected: dict[Image, dict[str, list[float]]] = {}
    for score in scores:
        if score.arm == arm and score.attack == attack and round in (None, score.round):
            for sample, row in score.matched().items():
                image = collected.setdefault((score.seed, score.client, sample), {})
                for name, value in row.metrics.items():
                    image.setdefault(name, []).append(value)
    return {
        image: {name: sum(values) / len(values) for name, values in metrics.items()}
        for image, metrics in collected.items()
    }


def sights_of(scores: Sequence[Score]) -> tuple[Sight, ...]:
    """Of each image in each arm how close each attacker came, in the round in which it came closest."""
    mean_image = {
        (score.client, sample): row.metrics.get("ssim_whole")
        for score in scores
        if score.arm == MEAN_IMAGE
        for sample, row in score.matched().items()
    }
    closest: dict[tuple[str, str, str, str], Sight] = {}
    for score in scores:
        for sample, row in score.matched().items():
            similarity = row.metrics.get("ssim_whole")
            if score.arm == MEAN_IMAGE or similarity is None:
                continue
            place = (score.arm, score.attack, score.client, sample)
            if place not in closest or similarity > closest[place].ssim:
                closest[place] = Sight(
                    arm=score.arm,
                    attack=score.attack,
                    client=score.client,
                    sample_id=sample,
                    reconstruction=row.reconstruction,
                    round=score.round + 1,
                    ssim=similarity,
                    mean_image_ssim=mean_image.get((score.client, sample)),
                )
    return tuple(closest.values())


def compared(
    own: Mapping[Pair, Mapping[str, float]], reference: Mapping[Pair, Mapping[str, float]], names: Iterable[str]
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """The mean of each name over what was measured, and its difference to the reference over what both have."""
    means, differences = {}, {}
    for name in names:
        values, others = (
            {pair: each[name] for pair, each in side.items() if name in each} for side in (own, reference)
        )
        both = [pair for pair in values if pair in others]
        if values:
            means[name] = mean_interval(list(values.values()))
        if both:
            differences[name] = paired_difference([values[pair] for pair in both], [others[pair] for pair in both])
    return means, differences


def score_table(
    scores: Sequence[Score], rows: Sequence[Row], attack: str, round: int | None, model: str = ""
) -> ScoreTable:
    """What one attack reached in each row's arm, beside what the row says already; the first is the reference.

    Args:
        round: 0-based, None for all rounds together.
    """
    reference = by_image(scores, rows[0].arm, attack, round)
    scored = []
    for row in rows:
        images = by_image(scores, row.arm, attack, round)
        metrics, difference = compared(images, reference, COLUMNS)
        if row is rows[0]:
            difference = {}
        scored.append(replace(row, images=len(images), metrics=metrics, difference=difference))
    return ScoreTable(attack=attack, round=None if round is None else round + 1, rows=tuple(scored), model=model)


def shown_rounds(rounds: Sequence[int]) -> tuple[int | None, ...]:
    """Of which rounds there is a table: all together (None), then each, where there are several."""
    return (None, *rounds) if len(rounds) > 1 else (None,)


def training_row(
    arm: str,
    settings: DefenseSettings,
    trainings: Mapping[int, History],
    reference: Mapping[int, History],
    names: Sequence[str],
) -> Row:
    """What the trainings of an arm say, by seed: utility of the final models, privacy budget, measurements.

    Args:
        names: of the measures of utility.
        reference: the trainings that utility is compared with; the arm's own for the first arm.
    """
    own, others = (_reached(each) for each in (trainings, reference))
    utility, difference = compared(own, others, names)
    measured = _measured(list(trainings.values()))
    epsilon = measured.pop("epsilon_spent", None)
    delta = next((part.delta for part in settings.parts().values() if hasattr(part, "delta")), None)
    return Row(
        arm=arm,
        images=0,
        seeds=len(trainings),
        metrics={},
        utility=utility,
        utility_difference={} if trainings is reference else difference,
        epsilon=None if epsilon is None else Guarantee(mean_interval(epsilon), delta),
        measured={name: sum(values) / len(values) for name, values in measured.items()},
    )


def _reached(trainings: Mapping[int, History]) -> dict[int, dict[str, float]]:
    return {
        seed: {name: value for name, value in history[-1].test.items() if value is not None}
        for seed, history in trainings.items()
    }


def _measured(histories: Sequence[History]) -> dict[str, list[float]]:
    """The defense's own measurements in the last round: for each seed the greatest epsilon, the mean of all else."""
    found: dict[str, list[float]] = {}
    for history in histories:
        clients = list(history[-1].clients.values())
        for name in dict.fromkeys(name for client in clients for name in client if name != "loss"):
            values = [value for client in clients if (value := client.get(name)) is not None]
            reached = max(values) if name.startswith("epsilon") else sum(values) / len(values)
            found.setdefault(name, []).append(reached)
    return found


def with_front(table: ScoreTable) -> ScoreTable:
    """The table with the arms marked that no other one beats in privacy and utility; none where the attack fails.

    An attack that does not beat a guess without defense, or not clearly, ranks nothing: whoever leaks less to it leaks
    less to nobody in particular.
    """
    guesses = [row.difference.get(PRIVACY) for row in table.rows if row.baseline]
    if any(each is not None and (each.clear() is False or each.mean >= 0) for each in guesses):
        return table
    shown = [row for row in table.rows if UTILITY in row.utility and PRIVACY in row.metrics]
    front = pareto_front([(-row.metrics[PRIVACY].mean, row.utility[UTILITY].mean) for row in shown])
    marks = {row.arm: on_front for row, on_front in zip(shown, front, strict=True)}
    return replace(table, rows=tuple(replace(row, on_front=marks.get(row.arm)) for row in table.rows))


def control_of(arm: str, arms: Mapping[str, DefenseSettings]) -> str | None:
    """The arm that is ``arm``, a Shadow defense, but for noise that is uniform over the image; None where none is."""

    def apart_from_placement(settings: DefenseSettings) -> dict[str, object]:
        resolved = settings.settings().model_dump(mode="json")
        return {**resolved, "share_bn": settings.share_bn, "placement": None}

    def is_uniform(settings: DefenseSettings) -> bool:
        return getattr(settings.settings(), "placement", None) == "uniform"

    if arm not in arms or arms[arm].defense != "shadow" or is_uniform(arms[arm]):
        return None
    return next(
        (
            name
            for name, other in arms.items()
            if other.defense == "shadow"
            and is_uniform(other)
            and apart_from_placement(other) == apart_from_placement(arms[arm])
        ),
        None,
    )

"""From finished cells to the record of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.analysis import (
    COLUMNS,
    by_image,
    compared,
    control_of,
    on_plane,
    score_table,
    shown_rounds,
)
from shadow_defense.experiment.described import attack_of, data_of, defense_of
from shadow_defense.experiment.origin import made
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.comparison.trainings import Trainings
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tasks.keys import data_hash
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.report.records.comparison import ComparisonRecord, DefenseEntry, Failure, LeftOut
from shadow_defense.report.records.scores import BASELINES, Row, ScoreTable
from shadow_defense.report.sentences.comparison import comparison_verdict


def gather(comparison: Comparison, scores: Mapping[str, Sequence[Score]], command: str) -> ComparisonRecord:
    """The record of what is there, with its verdict; ``scores`` by model, of all seeds."""
    grid, trainings = comparison.grid, Trainings(comparison)
    seeded = {seed: comparison.scene(next(iter(grid.models)), seed) for seed in grid.seeds}
    first = seeded[grid.seeds[0]]
    tables, planes, ablations = [], [], []
    for model in grid.models:
        config = trainings.config(model)
        points = [name for name in config.arms if name not in grid.ablations_of()]
        parts = dict.fromkeys([points[0], grid.ablations, *grid.ablations_of()]) if grid.ablations in points else {}
        for attack in grid.attacks:
            for round in shown_rounds(config.attacked_rounds(attack)):
                table = _table(trainings, model, attack, round, points, scores[model])
                if round is None:
                    table, plane = on_plane(table)
                    planes.append(plane)
                tables.append(table)
            if parts:
                ablations.append(_table(trainings, model, attack, None, list(parts), scores[model]))
    record = ComparisonRecord(
        **made(command, grid.threads, comparison.finished(), comparison.store),
        title=grid.title,
        seeds=grid.seeds,
        data=data_of(
            first, {str(seed): data_hash(comparison.scene(next(iter(grid.models)), seed)) for seed in grid.seeds}
        ),
        models={model: _model(comparison.scene(model, grid.seeds[0]), grid.models[model]) for model in grid.models},
        attacks={name: attack_of(first, name) for name in grid.attacks},
        defenses=_defenses(comparison),
        tables=tuple(tables),
        planes=tuple(planes),
        ablations=tuple(ablations),
        failures=tuple(Failure(cell, error) for cell, error in comparison.failures.items()),
        left_out=tuple(LeftOut(**dict(pair)) for pair in grid.leave_out),
        notes=tuple(_notes(scores)),
    )
    return replace(record, verdict=tuple(comparison_verdict(record)))


def _model(run: Scene, own: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings, with what its trainings and attacks were given: all that may differ from model to model."""
    config = run.config.as_dict()
    attacks = {
        name: {key: attack[key] for key in ("options", "rounds", "clients", "longest_client") if attack[key]}
        for name, attack in config["attacks"].items()
    }
    others = {key: config[key] for key in ("data", "generator", "metrics") if key in own}
    return {**config["model"], "training": config["training"], "attacks": attacks, **others}


def _defenses(comparison: Comparison) -> dict[str, DefenseEntry]:
    points, ablations = comparison.grid.points(), comparison.grid.ablations_of()
    arms = {name: point.settings for name, point in points.items()}
    controls = {name: control_of(name, arms) for name in arms}

    def entry(settings: DefenseSettings, family: str, label: str, control: str | None) -> DefenseEntry:
        placement = getattr(settings.settings(), "placement", None)
        described = vars(defense_of(settings))
        return DefenseEntry(**described, family=family, label=label, placement=placement, control=control)

    return {
        **{name: entry(each.settings, each.family, each.label, controls[name]) for name, each in points.items()},
        **{name: entry(settings, name, "", None) for name, settings in ablations.items()},
    }


def _table(
    trainings: Trainings, model: str, attack: str, round: int | None, arms: Sequence[str], scores: Sequence[Score]
) -> ScoreTable:
    """One attack on one model; rows of what was not scored are left out."""
    if round is None:
        scores = in_all_rounds(scores, attack, trainings.config(model))
    rows = [trainings.row(model, arm, arms[0]) for arm in (*arms, *BASELINES)]
    table = score_table(scores, rows, attack, round, model)
    found = [row for row in table.rows if row.images]
    return replace(
        table, rows=tuple(_with_control(_with_seeds(row, scores, table), trainings, scores, table) for row in found)
    )


def in_all_rounds(scores: Sequence[Score], attack: str, config: RunConfig) -> list[Score]:
    """The attack's scores, without the images that it missed in some round: a mean over other rounds is another one."""
    rounds = set(config.attacked_rounds(attack))
    own = [score for score in scores if score.attack == attack]
    found: dict[tuple[str, str], set[int]] = {}
    for score in own:
        found.setdefault((score.arm, score.client), set()).add(score.round)
    return [score for score in own if found[score.arm, score.client] >= rounds]


def _with_seeds(row: Row, scores: Sequence[Score], table: ScoreTable) -> Row:
    """A baseline, which trains nothing, with the number of seeds that it was scored on."""
    if not row.baseline:
        return row
    images = by_image(scores, row.arm, table.attack, _index(table))
    return replace(row, seeds=len({client.partition(",")[0] for client, _ in images}))


def _with_control(row: Row, trainings: Trainings, scores: Sequence[Score], table: ScoreTable) -> Row:
    """A Shadow defense whose control of equal energy is there: with what its aim changes, image by image."""
    control = control_of(row.arm, trainings.config(table.model).arms)
    if control is None:
        return row
    own, other = (by_image(scores, arm, table.attack, _index(table)) for arm in (row.arm, control))
    utility = trainings.row(table.model, row.arm, control).utility_difference
    return replace(row, control_difference={**compared(own, other, COLUMNS)[1], **utility})


def _index(table: ScoreTable) -> int | None:
    return None if table.round is None else table.round - 1


def _notes(scores: Mapping[str, Sequence[Score]]) -> list[str]:
    assumed = {
        f"{score.attack} on {model}: {note}."
        for model, each in scores.items()
        for score in each
        for note in score.notes
    }
    return [
        "Intervals of PSNR, SSIM and LPIPS: 95 %, over all attacked images of all seeds, each image's rounds averaged "
        "first; images of one seed share a training, so that the intervals are somewhat narrow. Intervals of F1: over "
        "seeds.",
        "Differences are paired by image and seed with the first defense.",
        "Time: one local step in a batch of the largest size, in a process of its own, in turn with undefended steps; "
        "memory: peak of that process's resident memory, interpreter and libraries included, against the same process "
        "before the defense. Both are measured at the first strength of each defense with each model, and not for "
        "ablations.",
        "mean image: what an attacker draws who never looks at an update. random update: what the attack draws from "
        "noise with the norms of the undefended update, which comes from its prior alone.",
        *sorted(assumed),
    ]

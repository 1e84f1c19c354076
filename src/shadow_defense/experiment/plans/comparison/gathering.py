"""From what a comparison has finished to its record and the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from torch import Tensor

from shadow_defense.config import RunConfig
from shadow_defense.data.dataset import ClientData
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import RunError
from shadow_defense.experiment.analysis import (
    COLUMNS,
    History,
    by_image,
    compared,
    control_of,
    score_table,
    shown_rounds,
    training_row,
    with_front,
)
from shadow_defense.experiment.described import attack_of, data_of, defense_of, made
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.experiment.trial import Trial
from shadow_defense.files import write_text
from shadow_defense.report.kit.plane import write_plane
from shadow_defense.report.pages.compare import comparison_markdown, comparison_numbers, render_comparison
from shadow_defense.report.records.comparison import (
    ComparisonPictures,
    ComparisonRecord,
    DefenseEntry,
    Failure,
    LeftOut,
)
from shadow_defense.report.records.reading import Settings, write_record
from shadow_defense.report.records.scores import BASELINES, Attack, Row, ScoreTable
from shadow_defense.report.sentences.comparison import comparison_verdict
from shadow_defense.report.sentences.noted import noted_once

UTILITY = ("f1_macro", "f1_micro", "accuracy", "auroc")


def write_results(comparison: Comparison, command: str) -> ComparisonRecord:
    """Gather what is there and write comparison.json, .csv, .md, .html and a plane-*.svg for each model and attack.

    Raises:
        RunError: when no model has a finished reference to compare with.
    """
    scores = comparison.scores()
    if not any(scores.values()):
        failed = "; ".join(f"{cell}: {error}" for cell, error in comparison.failures.items())
        raise RunError(f"no cell of the comparison could be computed ({failed}): correct the first and run it again")
    record, folder = gathered(comparison, scores, command), comparison.folder
    write_record(folder / "comparison.json", record)
    write_text(folder / "comparison.csv", comparison_numbers(record).csv())
    write_text(folder / "comparison.md", comparison_markdown(record))
    for plane in record.planes:
        write_plane(folder / f"plane-{plane.model}-{plane.attack}.svg", plane, record.defenses)
    write_text(page_path(folder), render_comparison(record, pictures(comparison.first_trials())))
    return record


def gathered(comparison: Comparison, scores: Mapping[str, Sequence[Score]], command: str) -> ComparisonRecord:
    """The record of what there is; ``scores``: by model, of all seeds."""
    return _Gathering(comparison, scores).record(command)


def page_path(folder: Path) -> Path:
    return folder / "comparison.html"


class _Gathering:
    """What there is of a comparison; each training is read once, however many tables name it."""

    def __init__(self, comparison: Comparison, scores: Mapping[str, Sequence[Score]]) -> None:
        self.comparison, self.grid, self.scores = comparison, comparison.grid, scores
        self.row, self._histories = cache(self._row), cache(self._read_histories)

    def record(self, command: str) -> ComparisonRecord:
        grid, trial, federation = self.grid, self.comparison.trial, self.comparison.federation_of
        model, ablated = next(iter(grid.models)), grid.ablations_of()
        first = trial(model, grid.seeds[0])
        tables, ablations = [], []
        for name in grid.models:
            config = self._config(name)
            points = [arm for arm in config.arms if arm not in ablated]
            parts = dict.fromkeys([points[0], grid.ablations, *ablated]) if grid.ablations in points else {}
            for attack in config.attacks:
                for round in shown_rounds(config.attacked_rounds(attack)):
                    table = self._table(name, attack, round, points)
                    tables.append(with_front(table) if round is None else table)
                if parts:
                    ablations.append(self._table(name, attack, None, list(parts)))
        finished = self.comparison.finished()
        record = ComparisonRecord(
            **vars(made(grid.title, command, grid.threads, self.comparison.store.origins(finished))),
            seeds=grid.seeds,
            data=data_of(
                federation(first), {str(seed): federation(trial(model, seed)).images.sha256 for seed in grid.seeds}
            ),
            models={name: _model(self._config(name), grid.models[name]) for name in grid.models},
            attacks=self._attacks(),
            defenses=self._defenses(),
            tables=tuple(tables),
            ablations=tuple(ablations),
            failures=tuple(Failure(cell, error) for cell, error in self.comparison.failures.items()),
            left_out=tuple(LeftOut(**dict(pair)) for pair in grid.leave_out),
            notes=tuple(_notes(self.scores)),
        )
        return replace(record, verdict=tuple(comparison_verdict(record)))

    def _attacks(self) -> dict[str, Attack]:
        """What is tried on some model, as on the first of them."""
        trials = list(self.comparison.first_trials().values())
        facing = {name: [each for each in trials if name in each.config.attacks] for name in self.grid.attacks}
        return {name: attack_of(own[0], name) for name, own in facing.items() if own}

    def _config(self, model: str) -> RunConfig:
        """The configuration of a model's run; of the first seed, since only the seed differs."""
        return self.comparison.trial(model, self.grid.seeds[0]).config

    def _defenses(self) -> dict[str, DefenseEntry]:
        points = self.grid.points()
        arms = {name: point.settings for name, point in points.items()}

        def entry(settings: DefenseSettings, family: str, label: str, control: str | None) -> DefenseEntry:
            placement = getattr(settings.settings(), "placement", None)
            described = vars(defense_of(settings))
            return DefenseEntry(**described, family=family, label=label, placement=placement, control=control)

        return {
            **{
                name: entry(each.settings, each.family, each.label, control_of(name, arms))
                for name, each in points.items()
            },
            **{name: entry(settings, name, "", None) for name, settings in self.grid.ablations_of().items()},
        }

    def _table(self, model: str, attack: str, round: int | None, arms: Sequence[str]) -> ScoreTable:
        """One attack on one model; rows of what was not scored are left out."""
        scores = self.scores[model]
        if round is None:
            scores = in_all_rounds(scores, attack, self._config(model))
        rows = [self.row(model, arm, arms[0]) for arm in (*arms, *BASELINES)]
        table = score_table(scores, rows, attack, round, model)

        def completed(row: Row) -> Row:
            own = by_image(scores, row.arm, attack, round)
            if row.baseline:
                # It trains nothing: its seeds are those that it was scored on.
                return replace(row, seeds=len({seed for seed, _, _ in own}))
            control = control_of(row.arm, self._config(model).arms)
            if control is None:
                return row
            # What its aim changes, image by image, against the control of equal energy.
            difference = compared(own, by_image(scores, control, attack, round), COLUMNS)[1]
            utility = self.row(model, row.arm, control).utility_difference
            return replace(row, control_difference={**difference, **utility})

        return replace(table, rows=tuple(completed(row) for row in table.rows if row.images))

    def _row(self, model: str, arm: str, reference: str) -> Row:
        """What an arm's trainings say, and how its utility differs from the reference's."""
        if arm in BASELINES:
            return Row(arm=arm, images=0, metrics={})
        settings, histories = self._config(model).arms[arm], self._histories(model, arm)
        row = training_row(arm, settings, histories, self._histories(model, reference), UTILITY)
        cost = self.comparison.costs.cost_of(model, arm) if histories else None
        shown = (
            {"time": cost.time_ratio, "memory": cost.memory_ratio, "prepare_seconds": cost.prepare_seconds}
            if cost
            else {}
        )
        return replace(row, share_bn=settings.share_bn, cost=shown)

    def _read_histories(self, model: str, arm: str) -> dict[int, History]:
        """By seed the finished trainings of an arm; none of what is not in this model's grid."""
        trials = [self.comparison.trial(model, seed) for seed in self.grid.seeds]
        found = {trial.config.seed: trial.history(arm) for trial in trials if arm in trial.config.arms}
        return {seed: history for seed, history in found.items() if history}


def _model(config: RunConfig, own: Settings) -> Settings:
    """A model's settings, with what its trainings and attacks were given: all that may differ from model to model."""
    values = config.as_dict()
    attacks = {
        name: {key: attack[key] for key in ("options", "rounds", "clients", "longest_client") if attack[key]}
        for name, attack in values["attacks"].items()
    }
    others = {key: values[key] for key in ("data", "generator", "metrics") if key in own}
    return {**values["model"], "training": values["training"], "attacks": attacks, **others}


def in_all_rounds(scores: Sequence[Score], attack: str, config: RunConfig) -> list[Score]:
    """The attack's scores, without the images that it missed in some round: a mean over other rounds is another one."""
    rounds = set(config.attacked_rounds(attack))
    own = [score for score in scores if score.attack == attack]
    found: dict[tuple[int, str, str], set[int]] = {}
    for score in own:
        found.setdefault((score.seed, score.arm, score.client), set()).add(score.round)
    return [score for score in own if found[score.seed, score.arm, score.client] >= rounds]


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
        *noted_once(sorted(assumed)),
    ]


def pictures(trials: Mapping[str, Trial]) -> tuple[ComparisonPictures, ...]:
    """For each model, by name, and each attack one image under every defense, in the first attacked round."""
    shown = []
    for model, trial in trials.items():
        for attack in trial.config.attacks:
            round, client = trial.attacked_updates(attack)[0]
            rebuilt = _rebuilt(trial, attack, round, client)
            if rebuilt:
                shown.append(
                    ComparisonPictures(
                        model=model,
                        attack=attack,
                        round=round + 1,
                        client=client.name,
                        class_name=trial.dataset.class_names[int(client.train.labels[0])],
                        original=client.train.unit_images()[0],
                        rebuilt=rebuilt,
                    )
                )
    return tuple(shown)


def _rebuilt(trial: Trial, attack: str, round: int, client: ClientData) -> dict[str, Tensor]:
    """By arm, what was made of the client's first image: attacks return images in no telling order."""
    found = {}
    for scoring in trial.scorings_with_control:
        job = scoring.job
        here = (job.attack, job.round, job.client) == (attack, round, client.name)
        if here and not scoring.mean_image and trial.store.has(scoring):
            images = scoring.rebuilt(trial.store, scoring.load(trial.store))
            if client.train.sample_ids[0] in images:
                found[scoring.arm] = images[client.train.sample_ids[0]]
    return found

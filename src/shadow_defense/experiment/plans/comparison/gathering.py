"""From finished cells to the tables, planes and pictures of a comparison."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.config import RunConfig
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.comparison.trainings import Trainings
from shadow_defense.experiment.plans.run import data_record
from shadow_defense.experiment.provenance import versions
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.tables import table
from shadow_defense.experiment.tasks.keys import data_hash
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.metrics.pareto import pareto_front
from shadow_defense.report.records.scores import MEAN_IMAGE, RANDOM_UPDATE

PRIVACY = "ssim_whole"


def gather(comparison: Comparison, scores: Mapping[str, Sequence[Score]], command: str) -> dict[str, Any]:
    """The content of ``comparison.json``, as :class:`ComparisonContent` says, without verdict."""
    grid = comparison.grid
    first = comparison.scene(next(iter(grid.models)), grid.seeds[0])
    trainings = Trainings(comparison)
    tables, ablations = [], []
    for model in grid.models:
        config = comparison.scene(model, grid.seeds[0]).config
        points = [name for name in config.arms if name not in grid.ablations_of()]
        parts = dict.fromkeys([points[0], grid.ablations, *grid.ablations_of()]) if grid.ablations in points else {}
        for attack in grid.attacks:
            rounds = config.attacked_rounds(attack)
            for round in (None, *rounds) if len(rounds) > 1 else (None,):
                tables.append(_table(trainings, model, attack, round, points, scores[model]))
            if parts:
                ablations.append(_table(trainings, model, attack, None, list(parts), scores[model]))
    return {
        "title": grid.title,
        "created": datetime.date.today().isoformat(),
        "command": command,
        "versions": {**versions(), "threads": str(grid.threads)},
        "seeds": list(grid.seeds),
        "data": {
            **data_record(first),
            "sha256": {str(seed): data_hash(comparison.scene(next(iter(grid.models)), seed)) for seed in grid.seeds},
        },
        "models": {model: _model(comparison.scene(model, grid.seeds[0]), grid.models[model]) for model in grid.models},
        "attacks": {
            name: {
                "attack": settings.attack,
                "settings": settings.build().model_dump(mode="json"),  # type: ignore[attr-defined]
                "threat_model": threat_model(settings.threat_model).describe(),
                "rounds": [round + 1 for round in first.config.attacked_rounds(name)],
                "clients": list(dict.fromkeys(client.name for _, client in first.attacked_updates(name))),
            }
            for name, settings in grid.attacks.items()
        },
        "defenses": {**_defenses(comparison), **_ablations(comparison)},
        "tables": tables,
        "planes": [_plane(entry) for entry in tables if entry["round"] is None],
        "ablations": ablations,
        "failures": [{"cell": cell, "error": error} for cell, error in comparison.failures.items()],
        "left_out": [pair.model_dump() for pair in grid.leave_out],
        "notes": _notes(scores),
    }


def _model(run: Scene, own: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings, with what its trainings and attacks were given: all that may differ from model to model."""
    config = run.config.as_dict()
    attacks = {
        name: {key: attack[key] for key in ("options", "rounds", "clients", "longest_client") if attack[key]}
        for name, attack in config["attacks"].items()
    }
    others = {key: config[key] for key in ("data", "generator", "metrics") if key in own}
    return {**config["model"], "training": config["training"], "attacks": attacks, **others}


def _described(settings: DefenseSettings, family: str, label: str, control: str | None) -> dict[str, Any]:
    kind = settings.kind()
    return {
        **settings.model_dump(mode="json"),
        "summary": kind.summary,
        "acts_on": list(settings.acts_on()),
        "family": family,
        "label": label,
        "placement": getattr(settings.settings(), "placement", None),
        "control": control,
    }


def _defenses(comparison: Comparison) -> dict[str, Any]:
    points = comparison.grid.points()
    arms = {name: point.settings for name, point in points.items()}
    return {
        name: _described(point.settings, point.family, point.label, control_of(name, arms))
        for name, point in points.items()
    }


def _ablations(comparison: Comparison) -> dict[str, Any]:
    return {name: _described(arm, name, "", None) for name, arm in comparison.grid.ablations_of().items()}


def _table(
    trainings: Trainings, model: str, attack: str, round: int | None, arms: Sequence[str], scores: Sequence[Score]
) -> dict[str, Any]:
    if round is None:
        scores = in_all_rounds(scores, attack, trainings.config(model))
    made = table(scores, [*arms, RANDOM_UPDATE], attack, round)
    rows = []
    for row in made["rows"]:
        arm = row.pop("arm")
        columns = trainings.columns(model, arm, arms[0])
        if arm in (RANDOM_UPDATE, MEAN_IMAGE):
            columns = {**columns, "seeds": _seeds_of(scores, arm, attack, round)}
        rows.append({"defense": arm, **row, **columns, **_control(trainings, model, attack, round, arm, scores)})
    # The mean image before the random update, as the page has them.
    rows[-2:] = rows[:-3:-1]
    return {"model": model, "attack": attack, "round": made["round"], "rows": [row for row in rows if row["images"]]}


def in_all_rounds(scores: Sequence[Score], attack: str, config: RunConfig) -> list[Score]:
    """The attack's scores, without the images that it missed in some round: a mean over other rounds is another one."""
    rounds = set(config.attacked_rounds(attack))
    own = [score for score in scores if score.attack == attack]
    found: dict[tuple[str, str], set[int]] = {}
    for score in own:
        found.setdefault((score.arm, score.client), set()).add(score.round)
    return [score for score in own if found[score.arm, score.client] >= rounds]


def _seeds_of(scores: Sequence[Score], arm: str, attack: str, round: int | None) -> int:
    """How many seeds a baseline, which trains nothing, was scored on."""
    clients = {
        score.client for score in scores if (score.arm, score.attack) == (arm, attack) and round in (None, score.round)
    }
    return len({client.partition(",")[0] for client in clients})


def _control(
    trainings: Trainings, model: str, attack: str, round: int | None, arm: str, scores: Sequence[Score]
) -> dict[str, Any]:
    """For a Shadow defense whose control of equal energy is there: what its aim changes, image by image."""
    control = control_of(arm, trainings.config(model).arms)
    if control is None:
        return {}
    row = table(scores, [control, arm], attack, round)["rows"][1]
    utility = trainings.columns(model, arm, control)["utility_difference"] or {}
    found = {**(row["difference"] or {}), **utility}
    return {"control_difference": found} if found else {}


def control_of(arm: str, arms: Mapping[str, DefenseSettings]) -> str | None:
    """The arm that is ``arm``, a Shadow defense, but for noise that is uniform over the image; None where none is."""

    def apart_from_placement(settings: DefenseSettings) -> dict[str, Any]:
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


def _plane(entry: Mapping[str, Any]) -> dict[str, Any]:
    rows = {row["defense"]: row for row in entry["rows"]}
    points = [
        {
            "defense": name,
            "privacy": row["metrics"][PRIVACY],
            "utility": row["utility"]["f1_macro"],
        }
        for name, row in rows.items()
        if "f1_macro" in (row["utility"] or {}) and PRIVACY in row["metrics"]
    ]
    # The lower the attack's SSIM, the more private.
    goodness = [(-point["privacy"]["mean"], point["utility"]["mean"]) for point in points]
    for point, on_front in zip(points, pareto_front(goodness), strict=True):
        point["on_front"] = on_front
    baseline = {name: rows[name]["metrics"][PRIVACY]["mean"] for name in (MEAN_IMAGE, RANDOM_UPDATE) if name in rows}
    return {
        "model": entry["model"],
        "attack": entry["attack"],
        "metric": PRIVACY,
        "points": points,
        "baseline": baseline,
    }


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

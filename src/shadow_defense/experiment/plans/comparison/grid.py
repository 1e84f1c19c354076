"""What is compared: models, defenses in all their strengths and without parts, attacks and seeds; one YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.config import MetricSettings, RunConfig, config_from
from shadow_defense.data.settings import DataSettings
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.validation import check_called, one_by_one, validated

UNDEFENDED = "fedavg"

SAME_FOR_ALL = ("arms", "seed", "title", "threads", "workers", "engine")
"""Keys that a model of the grid cannot have of its own."""


OWN = ("defenses", "seeds")
"""Keys of a model that say what is computed with it, and are no part of its run's configuration."""


class Family(DefenseSettings):
    """A defense with, where it is swept, the values that one of its settings takes."""

    sweep: dict[str, tuple[Any, ...]] = Field(
        {}, description="one option, or `preset`, and its values, weakest first: one point of the plane each"
    )
    seeds: int | None = Field(
        None, ge=1, description="a dear defense is trained with the first so many seeds alone; null: with all"
    )

    @model_validator(mode="after")
    def _one_option(self) -> Family:
        if len(self.sweep) > 1:
            raise ConfigError(f"sweep names {', '.join(self.sweep)}: sweep one option, with the others in `options`")
        if any(not values for values in self.sweep.values()):
            raise ConfigError(f"sweep of {next(iter(self.sweep))} has no values: give at least one, or leave sweep out")
        return self


class Point(BaseModel):
    """One defense at one strength: an arm of every federated training of the grid."""

    model_config = ConfigDict(frozen=True)

    settings: DefenseSettings
    family: str
    label: str
    seeds: int | None = None


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class LeftOut(BaseModel):
    """A pair that is not compared, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="name of a model of the grid")
    defense: str = Field(description="name of a defense of the grid, as in `defenses`")
    reason: str = Field(description="shown in the report")


class Grid(BaseModel):
    """Everything that decides a comparison's numbers. The first defense is what the others are compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("Defenses compared", description="heading of the report")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="every cell is computed once for each")
    data: DataSettings = DataSettings()
    generator: GeneratorSettings = GeneratorSettings()
    training: TrainingSettings = TrainingSettings()
    metrics: MetricSettings = MetricSettings()
    models: dict[str, dict[str, Any]] = Field(
        description="for each model its settings under `model`, and what else differs for it: training, data, "
        "generator, metrics, attacks; `defenses` names the points, such as noise-strong, and a list of `attacks` those "
        "attacks that it is compared with where that is not all of them; `seeds`: with the first so many alone"
    )
    defenses: dict[str, Family] = Field(description="by name; the first is the reference, plain FedAvg as a rule")
    attacks: dict[str, AttackSettings] = Field(description="by name; each is tried on every defense's updates")
    leave_out: tuple[LeftOut, ...] = Field((), description="pairs of model and defense that are not compared")
    ablations: str | None = Field(
        None, description="name of a Shadow defense of the grid whose parts are taken away one by one; null: none"
    )
    threads: int = Field(1, ge=1, le=1024, description="threads of each process, as in a run")
    workers: int | None = Field(None, ge=0, le=1024, description="processes in parallel, as in a run")
    engine: str = Field("in-process", description="what carries the trainings, as in a run")

    _located = field_validator("defenses", "attacks", mode="wrap")(one_by_one)

    @model_validator(mode="after")
    def _consistent(self) -> Grid:
        if not self.models or not self.defenses or not self.attacks:
            raise ConfigError("a comparison needs at least one of models, defenses and attacks: name them in the file")
        check_called("defenses", self.defenses, "defense", DEFENSES)
        check_called("attacks", self.attacks, "attack", ATTACKS)
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds are {', '.join(map(str, self.seeds))}: give different numbers, 0 or more")
        for pair in self.leave_out:
            if pair.model not in self.models:
                raise ConfigError(unknown_name("model in leave_out", pair.model, self.models))
            if pair.defense not in self.defenses:
                raise ConfigError(unknown_name("defense in leave_out", pair.defense, self.defenses))
            if pair.defense == next(iter(self.defenses)):
                raise ConfigError(f"leave_out names '{pair.defense}', which all others are compared with")
        if next(iter(self.defenses.values())).seeds is not None:
            raise ConfigError(f"'{next(iter(self.defenses))}' has fewer seeds, and all others are compared with it")
        if self.ablations is not None:
            if self.ablations not in self.points():
                raise ConfigError(unknown_name("defense to take parts from", self.ablations, self.points()))
            for name in ablation_arms(self.points()[self.ablations].settings):
                if name in self.points():
                    raise ConfigError(f"a defense is called '{name}', as one of the ablations is: rename the defense")
        for model in self.models:
            self._check_own(model)
            self._check_chosen(model)
            if not self.run_config(model, self.seeds[0]).attacks:
                raise ConfigError(f"models.{model}.attacks names none: give at least one of {', '.join(self.attacks)}")
        return self

    def _check_own(self, model: str) -> None:
        if re.fullmatch(r"[\w-][\w.-]*", model, re.ASCII) is None:
            raise ConfigError(f"the name '{model}' of a model cannot be a file: use letters, digits, '-', '_' and '.'")
        own = self.models[model]
        for key in SAME_FOR_ALL:
            if key in own:
                raise ConfigError(f"models.{model}.{key} cannot differ from model to model: set it for the whole grid")
        seeds = own.get("seeds")
        if seeds is not None and not (type(seeds) is int and seeds >= 1):
            raise ConfigError(f"models.{model}.seeds = {seeds!r}: expected how many of the first seeds, 1 or more")
        attacks = own.get("attacks")
        for name in attacks if isinstance(attacks, Mapping | list | tuple) else ():
            if name not in self.attacks:
                raise ConfigError(unknown_name(f"attack of models.{model}", str(name), self.attacks))

    def _check_chosen(self, model: str) -> None:
        points = self.points()
        chosen = self.models[model].get("defenses", list(points))
        if not isinstance(chosen, list | tuple) or not all(isinstance(name, str) for name in chosen):
            raise ConfigError(f"models.{model}.defenses = {chosen!r}: expected a list of names, such as [fedavg]")
        for name in chosen:
            if name not in points:
                raise ConfigError(unknown_name(f"defense of models.{model}", name, points))
        if next(iter(points)) not in chosen:
            raise ConfigError(
                f"models.{model}.defenses lacks '{next(iter(points))}', which all others are compared with"
            )

    def points(self) -> dict[str, Point]:
        """Every defense at every strength, by name: ``noise``, or ``noise-strong`` where it is swept."""
        return points_of(self.defenses)

    def ablations_of(self) -> dict[str, DefenseSettings]:
        """The arms in which a part of Shadow Defense is missing; {} where none were asked for."""
        return {} if self.ablations is None else ablation_arms(self.points()[self.ablations].settings)

    def seeds_of(self, model: str) -> tuple[int, ...]:
        """The seeds that ``model`` is computed with."""
        return self.seeds[: self.models[model].get("seeds")]

    def arms(self, model: str, seed: int | None = None) -> dict[str, DefenseSettings]:
        """All arms that are trained with ``model``: the points that are not left out, then the ablations.

        Args:
            seed: leaves out what is not trained with this one.
        """
        out = {pair.defense for pair in self.leave_out if pair.model == model}
        chosen = self.models[model].get("defenses", list(self.points()))
        points = {
            name: point.settings
            for name, point in self.points().items()
            if point.family not in out
            and name in chosen
            and (seed is None or point.seeds is None or seed in self.seeds[: point.seeds])
        }
        return {**points, **(self.ablations_of() if self.ablations in points else {})}

    def run_config(self, model: str, seed: int) -> RunConfig:
        """The configuration of the runs of one model and one seed. Raises :class:`ConfigError` for a wrong key."""
        shared = self.model_dump(
            mode="json",
            include={"title", "data", "generator", "training", "metrics", "attacks", "threads", "workers", "engine"},
        )
        arms = {name: settings.model_dump(mode="json") for name, settings in self.arms(model, seed).items()}
        changes = {key: value for key, value in self.models[model].items() if key not in OWN}
        if isinstance(changes.get("attacks"), list | tuple):
            chosen = changes.pop("attacks")
            shared["attacks"] = {name: each for name, each in shared["attacks"].items() if name in chosen}
        return config_from({**merged(shared, changes), "arms": arms, "seed": seed})


def points_of(defenses: Mapping[str, Family]) -> dict[str, Point]:
    """Every defense at every strength, by name. Raises :class:`ConfigError` where two have the same."""
    found: dict[str, Point] = {}

    def add(name: str, point: Point) -> None:
        if name in found:
            raise ConfigError(
                f"two defenses of the grid are called '{name}': rename one, or take the repeated value out of its sweep"
            )
        found[name] = point

    for name, family in defenses.items():
        plain, seeds = family.model_dump(exclude={"sweep", "seeds"}), family.seeds
        if not family.sweep:
            settings = validated(DefenseSettings, plain, ConfigError, name)
            add(name, Point(settings=settings, family=name, label="", seeds=seeds))
            continue
        ((option, values),) = family.sweep.items()
        for value in values:
            changed = (
                {**plain, option: value}
                if option in plain and option != "options"
                else {**plain, "options": {**plain["options"], option: value}}
            )
            settings = validated(DefenseSettings, changed, ConfigError, name)
            add(f"{name}-{value}", Point(settings=settings, family=name, label=str(value), seeds=seeds))
    return found


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested ``base`` with ``changes`` laid over it, key by key.

    >>> merged({"data": {"limit": 9, "image_size": 32}}, {"data": {"limit": 5}})
    {'data': {'limit': 5, 'image_size': 32}}
    """
    result = dict(base)
    for key, value in changes.items():
        earlier = result.get(key)
        both = isinstance(earlier, Mapping) and isinstance(value, Mapping)
        result[key] = merged(earlier, value) if both else value  # type: ignore[arg-type]
    return result


ABLATIONS: dict[str, dict[str, Any]] = {
    "without-latent-inversion": {"latent_pretraining": False},
    "without-pseudo-attack": {"shadow_rounds": 0},
    "without-equalisation": {"equalise": False},
    "without-momentum": {"momentum": 0.0},
    "without-foreground": {"foreground": False},
    "without-growth": {"schedule": "constant"},
    # Not in the paper: the same noise at other places, and everywhere alike.
    "shuffled-places": {"placement": "shuffled"},
    "uniform-noise": {"placement": "uniform"},
}


def ablation_arms(settings: DefenseSettings) -> dict[str, DefenseSettings]:
    """One arm for each part that is taken away from ``settings``, a Shadow defense.

    Raises:
        ConfigError: for any other defense.
    """
    if settings.defense != "shadow":
        raise ConfigError(f"ablations take parts from a Shadow defense: '{settings.defense}' has none of them")
    return {
        name: settings.model_copy(update={"options": {**settings.options, **change}})
        for name, change in ABLATIONS.items()
    }

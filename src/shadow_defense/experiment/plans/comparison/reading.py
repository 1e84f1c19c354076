"""Grids from YAML: comparisons that come with the package, files, and ordinary runs taken as grids; with flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from shadow_defense.attacks.build import ATTACKS
from shadow_defense.config import apply_overrides, config_from, preset_names, read_values
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.plans.comparison.grid import UNDEFENDED, Family, Grid, Point, points_of
from shadow_defense.validation import validated

FOLDER = "presets/comparisons"


def comparison_names() -> list[str]:
    """The comparisons that come with the package."""
    folder = resources.files("shadow_defense").joinpath(FOLDER)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_grid(
    source: str,
    overrides: Sequence[str] = (),
    *,
    defenses: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    rounds: Sequence[int] | None = None,
    clients: Sequence[str] | None = None,
    ablations: bool = False,
) -> Grid:
    """Read a comparison by name or file, or a run (its arms become the defenses), and apply flags.

    Args:
        overrides: ``key.path=value``, as for runs; applied before the flags.
        defenses: names of the grid, of one strength of it as pages print it, or of the registry, these with a preset
            after a colon: ``noise:strong``; the first of the grid stays the reference, and what is not in the grid is
            compared with every model.
        attacks: names of the grid or of the registry.
        rounds, clients: what every attack attacks, in place of its own and of a model's.
        ablations: take parts from the grid's first Shadow defense.

    Raises:
        ConfigError: unknown name, unreadable file, invalid YAML, unknown key, wrong value.
    """
    values = read_values(_file_of(source))
    apply_overrides(values, overrides)
    if not {"models", "defenses"} & values.keys():
        values = _grid_of_run(values)
    models = _named(values, "models")
    if not models:
        raise ConfigError(f"{source} names defenses and no models: add some, such as models: {{resnet18: {{}}}}")
    if defenses is not None:
        _choose_defenses(values, models, defenses)
    if attacks is not None:
        values["attacks"] = _chosen_attacks(_named(values, "attacks"), attacks)
        for own in models.values():
            if isinstance(own.get("attacks"), list):
                own["attacks"] = [name for name in own["attacks"] if name in values["attacks"]]
            elif "attacks" in own:
                kept = _named(own, "attacks").items()
                own["attacks"] = {name: settings for name, settings in kept if name in values["attacks"]}
    for key, value in (("rounds", rounds), ("clients", clients)):
        if value is not None:
            # A model's list names attacks and says no more of them.
            mappings = [own for own in models.values() if not isinstance(own.get("attacks"), list)]
            for place in (values, *mappings):
                for settings in _named(place, "attacks").values():
                    settings[key] = list(value)
    if seeds is not None:
        values["seeds"] = list(seeds)
    grid = validated(Grid, values, ConfigError)
    return _with_ablations(grid) if ablations and grid.ablations is None else grid


def _file_of(source: str) -> str:
    names = comparison_names()
    if source in names:
        return str(resources.files("shadow_defense").joinpath(FOLDER, f"{source}.yaml"))
    known = {*names, *preset_names()}
    if source not in known and Path(source).suffix not in (".yaml", ".yml") and not Path(source).exists():
        raise ConfigError(unknown_name("comparison", source, known) + "; or give the path of a YAML file")
    return source


def _named(values: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The groups of settings under a key, by name; {} where there is none."""
    groups = values.get(key)
    if groups is None:
        return {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise ConfigError(f"{key} = {groups!r}: expected names, each with its settings")
    return groups


def _grid_of_run(values: Mapping[str, Any]) -> dict[str, Any]:
    # What is wrong with the run is said in its own words.
    config_from({key: value for key, value in values.items() if key not in ("seeds", "leave_out", "ablations")})
    rest = {key: value for key, value in values.items() if key not in ("arms", "model", "seed")}
    model = values.get("model") or {}
    return {
        "seeds": [values.get("seed", 0)],
        **rest,
        "models": {str(model.get("name", "resnet18")): {"model": model}},
        "defenses": values.get("arms") or {UNDEFENDED: {"defense": "none"}, "shadow": {"defense": "shadow"}},
        "attacks": values.get("attacks") or {"inverting-gradients": {}},
    }


def _choose_defenses(values: dict[str, Any], models: Mapping[str, dict[str, Any]], names: Sequence[str]) -> None:
    """Put the chosen defenses in place of the grid's own, also where models and pairs name them."""
    own = _named(values, "defenses")
    chosen = _chosen_defenses(own, names)
    values["defenses"] = chosen
    pairs = values.get("leave_out")
    if isinstance(pairs, list):
        given = [pair for pair in pairs if not (isinstance(pair, dict) and pair.get("defense") in own.keys() - chosen)]
        values["leave_out"] = given
    if any(isinstance(settings.get("defenses"), list) for settings in models.values()):
        earlier = _points(own)
        later = _points(chosen)
        added = list(_points({name: settings for name, settings in chosen.items() if name not in own}))
        for settings in models.values():
            if isinstance(settings.get("defenses"), list):
                kept = [name for name in settings["defenses"] if name in later or name not in earlier]
                settings["defenses"] = [*kept, *(name for name in added if name not in kept)]


def _points(defenses: Mapping[str, Any]) -> dict[str, Point]:
    return points_of(
        {name: validated(Family, each, ConfigError, f"defenses.{name}") for name, each in defenses.items()}
    )


def _chosen_defenses(own: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    reference = next(iter(own), UNDEFENDED)
    chosen: dict[str, Any] = {reference: own.get(reference, {"defense": "none"})}
    # Families are checked only where a name may be of a strength of one: that takes seconds.
    points = _points(own) if any(name.startswith(f"{family}-") for name in names for family in own) else {}
    for name in names:
        defense, colon, preset = name.partition(":")
        if name in own:
            chosen[name] = own[name]
        elif name in points:
            chosen[name] = points[name].settings.model_dump(mode="json")
        elif defense != "none" or chosen[reference].get("defense", "none") != "none":
            given = {"defense": defense, "preset": preset if colon else "paper"}
            settings = validated(DefenseSettings, given, ConfigError)
            # A combination's plus signs cannot be in a name, which is a folder's in a run.
            chosen[(f"{defense}-{preset}" if colon else defense).replace("+", "-")] = settings.model_dump()
    return chosen


def _chosen_attacks(own: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if name not in own and name not in ATTACKS:
            raise ConfigError(unknown_name("attack", name, (*own, *ATTACKS)))
    return {name: own.get(name, {"attack": name}) for name in names}


def _with_ablations(grid: Grid) -> Grid:
    shadow = next((name for name, point in grid.points().items() if point.settings.defense == "shadow"), None)
    if shadow is None:
        raise ConfigError("--ablations takes parts from a Shadow defense and the grid has none: add one to `defenses`")
    return validated(Grid, {**grid.model_dump(mode="json"), "ablations": shadow}, ConfigError)

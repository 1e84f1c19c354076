"""Grids from YAML: comparisons that come with the package, files, and ordinary runs taken as grids; with flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from shadow_defense.attacks.build import ATTACKS
from shadow_defense.config import apply_overrides, read_values
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError, unknown_name
from shadow_defense.experiment.comparison.grid import NO_DEFENSE, Grid
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
        defenses: names of the grid or of the registry, these with a preset after a colon: ``noise:strong``; the first
            of the grid stays the reference.
        attacks: names of the grid or of the registry.
        rounds, clients: what every attack attacks, in place of its own.
        ablations: take parts from the grid's first Shadow defense.

    Raises:
        ConfigError: unknown name, unreadable file, invalid YAML, unknown key, wrong value.
    """
    if source in comparison_names():
        source = str(resources.files("shadow_defense").joinpath(FOLDER, f"{source}.yaml"))
    values = read_values(source)
    apply_overrides(values, overrides)
    if "models" not in values:
        values = _grid_of_run(values)
    if defenses is not None:
        values["defenses"] = _chosen_defenses(values.get("defenses") or {}, defenses)
        kept = values["defenses"]
        values["leave_out"] = [pair for pair in values.get("leave_out") or () if pair.get("defense") in kept]
    if attacks is not None:
        values["attacks"] = _chosen_attacks(values.get("attacks") or {}, attacks)
    for key, value in (("rounds", rounds), ("clients", clients)):
        if value is not None:
            for settings in values.get("attacks", {}).values():
                settings[key] = list(value)
    if seeds is not None:
        values["seeds"] = list(seeds)
    grid = validated(Grid, values, ConfigError)
    return _with_ablations(grid) if ablations and grid.ablations is None else grid


def _grid_of_run(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key not in ("arms", "model", "seed")}
    model = values.get("model") or {}
    return {
        **rest,
        "models": {str(model.get("name", "resnet18")): {"model": model}},
        "defenses": values.get("arms") or {NO_DEFENSE: {"defense": "none"}, "shadow": {"defense": "shadow"}},
        "attacks": values.get("attacks") or {"inverting-gradients": {}},
        "seeds": [values.get("seed", 0)],
    }


def _chosen_defenses(own: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    reference = next(iter(own), NO_DEFENSE)
    chosen: dict[str, Any] = {reference: own.get(reference, {"defense": "none"})}
    for name in names:
        defense, colon, preset = name.partition(":")
        if name in own:
            chosen[name] = own[name]
        elif not (defense == "none" and reference in chosen):
            settings = validated(DefenseSettings, {"defense": defense, "preset": preset or "paper"}, ConfigError)
            chosen[f"{defense}-{preset}" if colon else defense] = settings.model_dump()
    return chosen


def _chosen_attacks(own: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if name not in own and name not in ATTACKS:
            raise ConfigError(unknown_name("attack", name, {**own, **ATTACKS}))
    return {name: own.get(name, {"attack": name}) for name in names}


def _with_ablations(grid: Grid) -> Grid:
    shadow = next((name for name, point in grid.points().items() if point.settings.defense == "shadow"), None)
    if shadow is None:
        raise ConfigError("--ablations takes parts from a Shadow defense and the grid has none: add one to `defenses`")
    return validated(Grid, {**grid.model_dump(mode="json"), "ablations": shadow}, ConfigError)

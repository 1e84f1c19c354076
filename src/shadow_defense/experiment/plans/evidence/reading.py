"""What a study is, and studies from the package's YAML, a file, or a folder of images, with flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from shadow_defense.config import apply_overrides
from shadow_defense.errors import ConfigError, shown, unknown_name
from shadow_defense.experiment.plans.comparison.grid import Grid, merged
from shadow_defense.experiment.victims import Victims
from shadow_defense.plain_yaml import as_mapping, parse_yaml, read_yaml
from shadow_defense.validation import validated

FOLDER = "presets/studies"

REPLACED = ("defenses", "attacks", "models")
"""Groups that a later file gives as a whole."""


OWN = "own"
"""In sets.yaml: what is read where ``--data`` alone says it."""


def study_sets() -> list[str]:
    """The sets that come with the package."""
    return [name for name in _part("sets") if name != OWN]


def load_study(
    name: str | None,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    full: bool = False,
) -> tuple[str, Study]:
    """A study by set or YAML file, or of the images at ``data`` as they are, with its name.

    Args:
        data: file or folder of the set; a folder that holds ``<set>.npz`` stands for that.
        full: the whole grid, which takes days.

    Raises:
        ConfigError: unknown set, neither set nor images, or what does not fit.
        DataError: for images of no kind that is read.
    """
    sets = _part("sets")
    if name is None and data is None:
        raise ConfigError(f"name a set ({', '.join(study_sets())}), a YAML file, or the images themselves with --data")
    file = Path(name) if name is not None and Path(name).suffix in (".yaml", ".yml") else None
    if name is not None and file is None and name not in study_sets():
        raise ConfigError(unknown_name("set", shown(name), study_sets()) + "; or give your images with --data")
    own = {} if file is not None else sets[name or OWN]
    # What is cut for a set's size the whole grid has again.
    layers = [own, _part("full") if full else {}, {} if file is None else as_mapping(read_yaml(file), str(file))]
    values = reduce(laid_over, layers, dict(_part("study")))
    title = Path(name).stem if name is not None else _title(data)
    if data is not None:
        values = laid_over(values, _read_from(data, name))
    apply_overrides(values, overrides)
    if seeds is not None:
        values["seeds"] = list(seeds)
    return title, validated(Study, values, ConfigError)


def laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over them; of defenses, attacks and models the later ones alone.

    What earlier models chose from earlier defenses or attacks goes with those.
    """
    replaced = {group: changes[group] for group in REPLACED if group in changes}
    laid = {**merged(values, changes), **replaced}
    if "models" not in replaced:
        own = laid.get("models", {}).items()
        laid["models"] = {name: {key: each[key] for key in each if key not in replaced} for name, each in own}
    return laid


def _part(name: str) -> Mapping[str, Any]:
    path = resources.files("shadow_defense").joinpath(FOLDER, f"{name}.yaml")
    return as_mapping(parse_yaml(path.read_text("utf-8"), name), name)


def _title(data: Path | None) -> str:
    assert data is not None
    return data.resolve().stem or "images"


def _read_from(data: Path, name: str | None) -> Mapping[str, object]:
    """The settings of the data at a path: a known set's source stays, where it reads that."""
    from shadow_defense.data.source_at import source_at

    inside = data / f"{name}.npz"
    path = inside if inside.is_file() else data
    source = source_at(path)
    if source is None:
        raise ConfigError(f"--data {shown(path)}: expected an .npz, a CSV, or a folder of class folders")
    given = {"path": str(path)}
    if name is None:
        return {"title": f"Evidence on {_title(data)}", "data": {**given, "source": source.name}}
    return {"data": given if path.suffix == ".npz" else {**given, "source": source.name, "classes": None}}


class Study(Grid):
    """A grid whose attacks are on victims, and whose images are audited; the first defense is no defense.

    A defense whose images are drawn once is not attacked: the audit of its images bounds every attack.
    """

    victims: Victims = Victims()
    audited: int = Field(300, ge=2, le=100_000, description="protected images that the worst case is measured on")
    remover_steps: int = Field(700, ge=1, le=100_000, description="steps in which the learned remover is trained")
    remarks: tuple[str, ...] = Field((), description="what its page says besides: what was cut, and what it would take")
    attack_all: bool = Field(False, description="attack also what the worst case bounds")

    @model_validator(mode="after")
    def _on_single_updates(self) -> Study:
        if self.engine != "in-process" or self.training.clients_per_round is not None:
            raise ConfigError("a study trains all clients in one process: leave out engine and clients_per_round")
        return self

"""The configuration of a whole run: YAML presets and files, overrides, and clear errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.sources import SOURCES
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.devices import DEVICE_MEANING, DeviceName
from shadow_defense.errors import (
    ConfigError,
    DataError,
    GeneratorError,
    ModelError,
    ShadowDefenseError,
    shown,
    unknown_name,
)
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.files import LONGEST_NAME, path_name
from shadow_defense.generators.registry import GENERATORS
from shadow_defense.generators.settings import GeneratorSettings
from shadow_defense.models.naming import is_model_file, is_own, name_model
from shadow_defense.models.registry import MODELS
from shadow_defense.models.settings import ModelSettings
from shadow_defense.plain_yaml import DEEPEST, as_mapping, parse_yaml, read_yaml
from shadow_defense.registry import Registry
from shadow_defense.validation import check_called, names_only, one_by_one, validated

FILES = {
    "data": ("path", "public_path"),
    "model": ("weights", "start"),
    "generator": ("path", "begin_from", "begin_from_discriminator"),
    "metrics": ("lpips_weights",),
}
"""Settings that name a file or folder, by group."""


class MetricSettings(BaseModel):
    """How reconstructions are scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lpips: Literal["st-lpips", "alexnet"] | None = Field(
        default_factory=lambda: "st-lpips" if find_spec("stlpips_pytorch") else None,
        description="perceptual distance; null leaves it out. Not given: st-lpips where the extra lpips is installed",
    )
    lpips_weights: Path | None = Field(
        None, description="weights file of alexnet: torchvision's .pth, or an npz of LPIPS v0.1"
    )
    foreground_share: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="where no lesion mask is known, the foreground is this share of pixels, by Grad-CAM++ of the "
        "first arm's final model",
    )


class RunConfig(BaseModel):
    """Everything that decides a run's numbers, but the software's versions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("Shadow Defense", description="heading of the report")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="every random draw derives from it")
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    generator: GeneratorSettings = GeneratorSettings()
    training: TrainingSettings = TrainingSettings()
    # Defaults as they are: to check them would import what they name.
    arms: dict[str, DefenseSettings] = Field(
        {"fedavg": DefenseSettings.model_construct(), "shadow": DefenseSettings.model_construct(defense="shadow")},
        description="one federated training each; differences are taken to the first",
    )
    attacks: dict[str, AttackSettings] = Field(
        {"inverting-gradients": AttackSettings.model_construct()}, description="attacks tried on every arm's updates"
    )
    metrics: MetricSettings = MetricSettings()
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="threads of each training and attacking process; another number may give other last digits. On "
        "small networks one thread is as fast as two",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="processes in parallel; null: one a processor core, 0: all in the one that was started",
    )
    device: DeviceName = Field("auto", description=DEVICE_MEANING)
    engine: str = Field(
        "in-process",
        description="what carries the training: in-process, flower-simulation or flower-secure-aggregation",
    )

    _located = field_validator("arms", "attacks", mode="wrap")(one_by_one)

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> RunConfig:
        chosen: tuple[tuple[Registry[Any], str, dict[str, Any], type[ShadowDefenseError], str], ...] = (
            (SOURCES, self.data.source, self.data.options, DataError, "data.options"),
            (MODELS, self.model.name, self.model.options, ModelError, "model.options"),
            (GENERATORS, self.generator.name, self.generator.options, GeneratorError, "generator.options"),
        )
        for registry, name, options, error, where in chosen:
            registry.check(name)
            if not names_only(info):
                registry.find(name).options_of(options, error, where)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        for name in (*self.arms, *self.attacks):
            if not name or path_name(name) != name:
                raise ConfigError(
                    f"the name '{shown(name)}' cannot be a folder: use at most {LONGEST_NAME} letters, digits, '-', "
                    "'_' and '.'"
                )
        check_called("arms", self.arms, "defense", DEFENSES)
        check_called("attacks", self.attacks, "attack", ATTACKS)
        if not self.arms:
            raise ConfigError("arms is empty: name at least one, such as `fedavg: {defense: none}`")
        for name, attack in self.attacks.items():
            if attack.rounds == ():
                raise ConfigError(f"attacks.{name}.rounds is empty: name rounds, or null for the first and the last")
            late = [round for round in attack.rounds or () if not 1 <= round <= self.training.rounds]
            if late:
                raise ConfigError(
                    f"attacks.{name}.rounds asks for round {late[0]}: expected 1 to training.rounds, "
                    f"{self.training.rounds}"
                )
        return self

    def attacked_rounds(self, attack: str) -> tuple[int, ...]:
        """The attacked rounds, 0-based, in order."""
        rounds = self.attacks[attack].rounds
        if rounds is None:
            rounds = (1, self.training.rounds)
        return tuple(sorted({round - 1 for round in rounds}))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        return json.loads(self.model_dump_json())

    @property
    def needs_generator(self) -> bool:
        """Whether any arm's defense, or any attack, asks for a generator."""
        defenses = any(arm.kind().needs_generator for arm in self.arms.values())
        return defenses or any(attack.needs_generator for attack in self.attacks.values())

    def with_absolute_paths(self) -> RunConfig:
        """So that a run goes on from any working directory."""
        changed = {}
        for group, names in FILES.items():
            settings: BaseModel = getattr(self, group)
            changed[group] = settings.model_copy(update={name: _absolute(getattr(settings, name)) for name in names})
        if is_model_file(self.model.name):
            changed["model"] = changed["model"].model_copy(update={"name": str(_absolute(Path(self.model.name)))})
        return self.model_copy(update=changed)

    def check_files(self) -> None:
        """Raise :class:`ConfigError` for a file or folder that a setting names and that is not there."""
        for group, names in FILES.items():
            for name in names:
                path = _absolute(getattr(getattr(self, group), name))
                if path is not None and not path.exists():
                    raise ConfigError(f"{group}.{name}: {shown(path)} does not exist: correct the path")

    def fingerprint(self) -> str:
        """A hash of all that decides the numbers: not the number of workers, nor the title."""
        deciding = {key: value for key, value in self.as_dict().items() if key not in ("workers", "title")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _absolute(path: Path | None) -> Path | None:
    try:
        return None if path is None else path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{shown(path)} is no path: {error}; give another") from error


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("shadow_defense").joinpath("presets")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_titles() -> dict[str, str]:
    """What each preset that comes with the package is about, in one line."""
    return {name: str(read_values(name)["title"]) for name in preset_names()}


def _read_source(source: str) -> tuple[Any, str]:
    if source in preset_names():
        text = resources.files("shadow_defense").joinpath("presets", f"{source}.yaml").read_text("utf-8")
        return parse_yaml(text, source), source
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise ConfigError(unknown_name("preset", source, preset_names()) + "; or give the path of a YAML file")
    return read_yaml(path), str(path)


def load_config(source: str, overrides: Sequence[str] = (), *, files: bool = False) -> RunConfig:
    """Read a preset or a YAML file and apply ``key.path=value`` overrides, in order.

    Args:
        source: also a model of one's own (:mod:`shadow_defense.models.naming`): all else has its defaults.
        overrides: of the command line. A model of one's own that ``source`` or these name may be run; one that only a
            file names may not.
        files: every file and folder that a setting names has to be there.

    Raises:
        ConfigError: unknown preset, unreadable file, invalid YAML, unknown key (naming the nearest), wrong value.
    """
    values = {} if is_own(source) else read_values(source)
    apply_overrides(values, [*([f"model.name={source}"] if is_own(source) else []), *overrides])
    _name_own_model(values, source, overrides)
    # First what can be seen without importing anything that is named, and so without torch. There is no more to be
    # seen in a preset of the package as it is.
    named = validated(RunConfig, values, ConfigError, names=True)
    if files:
        named.check_files()
    return named if source in preset_names() and not overrides else config_from(values)


def _name_own_model(values: dict[str, Any], source: str, overrides: Sequence[str]) -> None:
    model = values.get("model")
    place = model.get("name") if isinstance(model, dict) else None
    if isinstance(place, str) and is_own(place) and (is_own(source) or f"model.name={place}" in overrides):
        values["model"] = {**values["model"], "name": name_model(place)}


def read_values(source: str) -> dict[str, Any]:
    """The keys and values of a preset or a YAML file, not yet validated. Raises :class:`ConfigError`."""
    value, origin = _read_source(source)
    return {} if value is None else as_mapping(value, origin)


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from nested dicts of plain values."""
    return validated(RunConfig, values, ConfigError)


def assignments(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of ``key=value`` entries; errors as in :func:`apply_overrides`."""
    values: dict[str, Any] = {}
    apply_overrides(values, overrides)
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change nested ``values`` by ``key.path=value`` entries, in order; the values are read as YAML.

    Raises:
        ConfigError: for an entry that is no such assignment.
    """
    for override in overrides:
        _apply_override(values, override)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"cannot read --set {override}: expected key.path=value, such as data.image_size=64")
    left = key.split(".")
    if len(left) > DEEPEST:
        raise ConfigError(f"cannot set {shown(key)}: no setting lies deeper than {DEEPEST} levels")
    place: Any = values
    part, left = _next_key(place, left)
    while left:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise ConfigError(f"cannot set {key}: '{part}' is a value, not a group of keys")
        part, left = _next_key(place, left)
    place[part] = parse_yaml(text, f"--set {key}")


def _next_key(place: Mapping[str, Any], left: list[str]) -> tuple[str, list[str]]:
    """The next key of a dotted path and what is left of it; a key that is there may have dots itself."""
    for count in range(len(left), 0, -1):
        if ".".join(left[:count]) in place:
            return ".".join(left[:count]), left[count:]
    return left[0], left[1:]

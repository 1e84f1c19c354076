"""Names from other packages: entry points of made-up distributions, and modules that are written here."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from shadow_defense.attacks.build import AttackSettings
from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.data.dataset import Normalisation, no_images
from shadow_defense.data.sources import SOURCES
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.kind import DefenseKind, Resources
from shadow_defense.defenses.registry import DEFENSES, OWN
from shadow_defense.errors import ConfigError, DefenseError
from shadow_defense.generators.registry import GENERATORS
from shadow_defense.models.registry import MODELS
from shadow_defense.registry import Entry, Registry

PLUGIN = """
from pydantic import BaseModel, ConfigDict, Field
from shadow_defense.attacks.kind import AttackKind
from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.kind import DefenseKind

class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    strength: float = Field(1.0, gt=0, description="how much")

class Mine(Defense):
    kind = DefenseKind("mine", "a stranger's", Settings, lambda settings, resources: Mine(), acts_on=("batch",))

class Other(Defense):
    acts_on = frozenset({"update"})

half = AttackKind("half", "", Settings)
unsaid = DefenseKind("unsaid", "", Settings, lambda settings, resources: Other(), acts_on=("batch",))
"""


@pytest.fixture
def defenses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[DefenseKind]:
    """A fresh registry that sees a distribution with good and broken entry points; the package's own does not."""
    assert len(DEFENSES.points) == 0
    (tmp_path / "a_stranger.py").write_text(PLUGIN)
    (tmp_path / "a_broken_stranger.py").write_text("import a_package_that_is_nowhere\n")
    information = tmp_path / "a_stranger-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: a-stranger\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[shadow_defense.defenses]\n"
        "mine = a_stranger:Mine\nbroken = a_broken_stranger:Mine\nwrong = a_stranger:Other\nnoise = a_stranger:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry("defense", DefenseKind, OWN, DefenseError)
    for module in ("a_stranger", "a_broken_stranger"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    "registry", [DEFENSES, ATTACKS, MODELS, GENERATORS, SOURCES], ids=lambda registry: registry.what
)
def test_every_entry_of_the_package_is_in_its_registry(registry: Registry[Entry]) -> None:
    """By the module in which it lies: an entry that is written and not listed cannot be chosen."""
    room = importlib.import_module(registry.entry.__module__.rpartition(".")[0])
    listed = {(name, kind.name) for name, kind in registry.own.items()}
    found = {
        (each.name, each.name)
        for module in pkgutil.iter_modules(room.__path__)
        for attribute, value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).items()
        for each in (value if isinstance(value, tuple) else (value,))
        if isinstance(each, registry.entry) and not attribute.startswith("_")
    }
    assert listed == found, f"add it to OWN of the registry in {room.__name__}"


def test_entry_points_are_entries_and_load_when_asked_for(defenses: Registry[DefenseKind]) -> None:
    assert "mine" in defenses and "mine" in list(defenses) and len(list(defenses)) == len(defenses)
    assert "a_stranger" not in sys.modules, "a name in a list runs nobody's code"
    assert defenses["mine"].summary == "a stranger's"
    assert defenses["mine"] is defenses.find("mine")


def test_where_an_entry_lies_is_said_before_it_is_loaded(defenses: Registry[DefenseKind]) -> None:
    assert defenses.module("noise") == "shadow_defense.defenses.noise"
    assert defenses.module("mine") == defenses.module("a_stranger:Mine") == "a_stranger"
    assert "a_stranger" not in sys.modules
    with pytest.raises(DefenseError, match="unknown defense 'mien': did you mean 'mine'"):
        defenses.module("mien")


def test_a_name_of_the_package_stays_its_own(defenses: Registry[DefenseKind]) -> None:
    assert defenses["noise"].options.__module__ == "shadow_defense.defenses.noise"
    assert list(defenses).count("noise") == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("broken", r"'broken' of a-stranger \(entry point shadow_defense.defenses: broken = a_broken_stranger:Mine\)"),
        ("broken", "cannot be loaded: ModuleNotFoundError: No module named 'a_package_that_is_nowhere'"),
        ("wrong", r"'wrong' of a-stranger .*Other.*: expected a DefenseKind, or a class that has one"),
        ("mien", "unknown defense 'mien': did you mean 'mine'"),
        ("a_stranger:Nobody", "'a_stranger:Nobody' cannot be loaded: AttributeError"),
        ("nowhere:Mine", "'nowhere:Mine' cannot be loaded: ModuleNotFoundError.*put PYTHONPATH=. before the command"),
        (":", "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_says_whose_it_is(defenses: Registry[DefenseKind], name: str, match: str) -> None:
    with pytest.raises(DefenseError, match=match) as raised:
        defenses.find(name)
    assert "\n" not in str(raised.value)
    assert len(list(defenses)) == len(defenses), "the others can still be listed"


def test_two_packages_with_one_name(defenses: Registry[DefenseKind], tmp_path: Path) -> None:
    other = tmp_path / "another-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[shadow_defense.defenses]\nmine = a_stranger:Mine\n")
    assert metadata.version("another") == "2.0"
    with pytest.raises(DefenseError, match=r"entry point of (a-stranger and of another|another and of a-stranger)"):
        defenses.find("mine")


def test_a_class_of_any_module_is_a_defense(defenses: Registry[DefenseKind]) -> None:
    name = "a_stranger:Mine"
    assert DefenseSettings(defense=name, options={"strength": 2.0}).settings().strength == 2.0
    with pytest.raises(Exception, match="did you mean 'strength'"):
        DefenseSettings(defense=name, options={"strenght": 2.0})
    parts = DefenseSettings(defense=f"{name}+clip").parts()
    assert list(parts) == [name, "gradient-clipping"]


def test_a_place_that_the_entry_does_not_say(defenses: Registry[DefenseKind]) -> None:
    """The rules of combinations rely on what is said."""
    nothing = Resources(None, Normalisation((0.5,), (0.5,)), no_images(), 2, "site-1", seed=0)
    with pytest.raises(DefenseError, match="acts on update, which its entry does not say"):
        DefenseSettings(defense="a_stranger:unsaid").build(nothing)


def test_half_an_attack(defenses: Registry[DefenseKind]) -> None:
    with pytest.raises(ConfigError, match="'a_stranger:half' is a Settings without needs, steps or reconstruct"):
        AttackSettings(attack="a_stranger:half")


def test_attacks_are_found_in_their_modules() -> None:
    assert {"dlg", "idlg", "gias", "model-based", "inverting-gradients", "robbing-the-fed"} <= set(ATTACKS)
    named = AttackSettings(attack="shadow_defense.attacks.deep_leakage:DLG_KIND", options={"iterations": 3}).build()
    assert type(named) is ATTACKS["dlg"].attack and named.steps() == 12

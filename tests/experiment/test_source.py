"""What of the source stands in a result's key: all that runs, and nothing that only lies beside it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import shadow_defense
from shadow_defense.defenses.registry import DEFENSES
from shadow_defense.experiment import source
from shadow_defense.experiment.run import Recorded
from shadow_defense.experiment.scheduler import missing
from shadow_defense.experiment.source import code_hash, reached
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.keys import ADAPTIVE, ATTACKING, TRAINING, training_parts
from shadow_defense.progress import Progress
from tests.experiment.comparison_grid import TINY, the_scene
from tests.experiment.test_evidence import evidence, trial

FILES = {
    "__init__.py": "",
    "root.py": (
        "from typing import TYPE_CHECKING\n"
        "from .near import f\n"
        "if TYPE_CHECKING:\n    from whole.typed import T\nelse:\n    from whole.untyped import T\n"
        "def g():\n    from whole.deep import h\n    return h() + f()\n"
    ),
    "near.py": 'def f():\n    """One."""\n    return 1\n',
    "typed.py": "T = int\n",
    "untyped.py": "T = str\n",
    "deep/__init__.py": "import whole.deep.er\nfrom whole.root import g\nh = whole.deep.er.h\n",
    "deep/er.py": "def h():\n    return 2\n",
    "beside.py": "x = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of another author, importable."""
    for name, text in FILES.items():
        (tmp_path / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    forget()
    yield tmp_path / "whole"
    forget()


def forget() -> None:
    """As in another process."""
    for each in (source.code_hash, source.reached, source._read, source._top):
        each.cache_clear()


def changed_by(path: Path, text: str) -> bool:
    before, kept = code_hash("whole.root"), path.read_text()
    path.write_text(text)
    forget()
    after = code_hash("whole.root")
    path.write_text(kept)
    forget()
    return before != after


class TestCodeHash:
    def test_imports_are_followed_within_functions_and_in_circles(self, package: Path) -> None:
        found = {"whole", "whole.root", "whole.near", "whole.deep", "whole.deep.er", "whole.untyped"}
        assert reached("whole.root") == found

    def test_code_that_runs_changes_it(self, package: Path) -> None:
        assert changed_by(package / "near.py", "def f():\n    return 3\n")
        assert changed_by(package / "deep" / "er.py", "def h():\n    return 3\n")
        assert changed_by(package / "__init__.py", "import whole.beside\n")

    def test_words_and_what_lies_beside_do_not(self, package: Path) -> None:
        assert not changed_by(package / "near.py", '"""Why."""\n\n\ndef f():\n    # Because.\n    return 1\n')
        assert not changed_by(package / "beside.py", "x = 2\n")
        assert not changed_by(package / "typed.py", "T = str\n")

    def test_a_file_alone_is_read_with_those_beside_it(self, package: Path) -> None:
        (package.parent / "alone.py").write_text("import torch\nfrom helper import width\n")
        (package.parent / "helper.py").write_text("width = 3\n")
        forget()
        assert reached("alone") == {"alone", "helper"}

    def test_a_package_is_taken_before_a_file_of_its_name(self, package: Path) -> None:
        (package / "deep.py").write_text("import whole.beside\n")
        (package.parent / "whole.py").write_text("import whole.beside\n")
        forget()
        assert "whole.deep.er" in reached("whole.root") and "whole.beside" not in reached("whole.root")

    def test_a_folder_without_an_init_is_a_package_too(self, package: Path) -> None:
        (package / "__init__.py").unlink()
        forget()
        assert "whole.near" in reached("whole.root") and changed_by(package / "near.py", "def f():\n    return 3\n")

    def test_what_this_package_gives_by_its_own_name_is_found(self, package: Path) -> None:
        (package / "root.py").write_text("from shadow_defense import ShadowGuard\n")
        forget()
        assert "shadow_defense.shadow.noise_map" in reached("whole.root")

    def test_what_has_no_source_is_known_by_its_name(self) -> None:
        assert code_hash("itertools") == code_hash("itertools") != code_hash("no_such_module_anywhere")


@pytest.mark.parametrize("name", sorted(DEFENSES.own))
def test_another_defense_is_not_trained_anew(name: str) -> None:
    """What ``none`` runs is in every training; a defense's own file is in its own."""
    place = DEFENSES.module(name)
    assert place in reached(TRAINING, place)
    assert (place in reached(TRAINING, DEFENSES.module("none"))) == (name == "none")


def test_what_an_attack_that_knows_the_defense_does_besides_is_in_its_own_key_alone() -> None:
    denoiser = "shadow_defense.attacks.adaptive.denoiser"
    assert denoiser in reached(ATTACKING, ADAPTIVE) - reached(ATTACKING)


def test_an_entry_of_another_package_is_in_the_key(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "mine.py").write_text(
        "from dataclasses import replace\nfrom shadow_defense.defenses.none import NONE\nfrom whole.near import f\n"
        "KIND = replace(NONE, name='mine')\n"
    )
    arms = {"fedavg": {"defense": "none"}, "mine": {"defense": "whole.mine:KIND"}}
    assert "shadow_defense.defenses.base" in reached("whole.mine")
    before = {arm: training_parts(the_scene(tmp_path / "out", defenses=arms), arm) for arm in arms}
    (package / "near.py").write_text("def f():\n    return 3\n")
    forget()
    after = {arm: training_parts(the_scene(tmp_path / "out", defenses=arms), arm) for arm in arms}
    assert [before[arm] == after[arm] for arm in arms] == [True, False]


def test_what_is_read_of_a_recorded_training_hangs_on_what_it_is_read_with(tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "update").write_text("as recorded")

    def key(**changes: Any) -> str:
        return Recorded(tmp_path / "arm", 2, the_scene(tmp_path / "out", **changes), "fedavg").key

    before = key()
    assert key() == before != key(data={**TINY["data"], "image_size": 24})
    assert key(training={"rounds": 2, "learning_rate": 0.1}) != before
    # A server never had the clients' generator.
    elsewhere = {**TINY["generator"], "path": str(tmp_path / "nowhere.safetensors")}
    scene = the_scene(tmp_path / "out", generator=elsewhere)
    assert Recorded(tmp_path / "arm", 2, scene, "shadow-1.0").key != before
    (tmp_path / "arm" / "update").write_text("changed")
    assert key() != before


ARMS = {
    **TINY["defenses"],
    "once": {"defense": "protect-once", "options": {"texture": "white"}},
    "both": {"defense": "gradient-clipping+dp"},
}
ATTACKS = {
    "plain": {"attack": "inverting-gradients", "options": {"iterations": 2}, "longest_client": 1, "rounds": [1]},
    "adaptive": {
        "attack": "gradinversion",
        "options": {"iterations": 2},
        "threat_model": "adaptive server",
        "adaptive": {},
        "longest_client": 1,
        "rounds": [1],
    },
    "gifd": {
        "attack": "gifd",
        "options": {"iterations": 2, "restarts": 1, "stages": 1},
        "longest_client": 1,
        "rounds": [1],
    },
}


class TestWhatRunsIsInTheKey:
    """No import by another way than those that the hash follows has been forgotten."""

    def test_of_a_comparison(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        public = {"data": {**TINY["data"], "public_fraction": 0.5}}
        scene = the_scene(tmp_path / "out", defenses=ARMS, attacks=ATTACKS, **public)
        kinds = check([*scene.trainings.values(), *scene.scorings_with_control], scene, monkeypatch)
        assert kinds == {"generator", "training", "attack", "score"}

    def test_of_a_study(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = evidence(tmp_path)
        tasks = [task for task in plan.tasks() if "cost" not in task.kind]
        kinds = check(tasks, trial(plan), monkeypatch)
        assert kinds >= {"training", "updates", "bound", "planted", "predicted", "reading-network", "central-training"}


HARMLESS = {
    f"shadow_defense.{name}"
    for name in (
        *("config", "errors", "files", "folder_lock", "handed_on", "progress", "registry", "validation"),
        *("defenses.registry", "generators.registry", "models.naming", "models.registry"),
        *("experiment.source", "experiment.store", "experiment.task", "experiment.tasks.keys"),
        "report.records.reading",
    )
}
"""What runs in tasks and decides no number: files, messages, and what stands in keys by its outcome."""


def check(tasks: list[Task], scene: Any, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Compute tasks and what they need, each with a look at what runs; returns their kinds."""
    hashed: dict[str, set[str]] = {}
    kinds = set()
    for task in missing(tasks, scene.store):
        # A key holds the keys of what the task needs.
        hashed[task.name] = hashed_by(task, monkeypatch).union(*(hashed[need.name] for need in task.needs()))
        ran = run_by(lambda task=task: task.compute(scene.store, Progress()))
        scene.store.record(task)
        assert ran - hashed[task.name] <= HARMLESS, task.about
        kinds.add(task.kind)
    return kinds


def hashed_by(task: Task, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules whose source is read for a task's key."""
    found, read = set(), source._read
    vars(task).pop("key", None)
    source.code_hash.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(source, "_read", lambda name: found.add(name) or read(name))
        assert task.key
    source.code_hash.cache_clear()
    return found


def run_by(action: Any) -> set[str]:
    """The package's modules of which a function runs, as ``action`` does."""
    files: set[str] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            files.add(frame.f_code.co_filename)

    sys.setprofile(look)
    try:
        action()
    finally:
        sys.setprofile(None)
    root = Path(shadow_defense.__file__).parent
    inside = [Path(file).relative_to(root.parent) for file in files if Path(file).is_relative_to(root)]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in inside}

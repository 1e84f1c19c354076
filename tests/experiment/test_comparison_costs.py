"""What a comparison will cost: measured, forecast, and refused where the disk is too small."""

from __future__ import annotations

import json
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shadow_defense.config import config_from
from shadow_defense.errors import RunError
from shadow_defense.experiment.forecast import training_seconds
from shadow_defense.experiment.plans import run as plan_of_run
from shadow_defense.experiment.plans.comparison import costs
from shadow_defense.experiment.plans.comparison.grid import Grid
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.run import forecast_text
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scheduler import missing
from shadow_defense.experiment.tasks import costing, measuring, timing
from shadow_defense.experiment.tasks.costing import Cost, Costing, StepCost
from shadow_defense.progress import Progress, duration
from shadow_defense.report.records.reading import read_record
from tests.experiment.comparison_grid import COST, TINY, fixed_cost, grid, scorings_of, the_scene


class TestForecast:
    def test_ratios_are_those_of_the_largest_batch(self) -> None:
        assert COST.time_ratio == 5.0
        assert COST.memory_ratio == 1.5
        assert [COST.step_seconds(size) for size in (1, 4, 5, 32)] == [0.2, 0.2, 1.5, 1.5]
        assert COST.first_seconds(32) == 2.0

    def test_what_is_dear_in_early_rounds_alone_is_measured_over_all_of_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A first round of 9 s a step and later ones of 1 s: 13 s in five of nine rounds, at even distances."""
        taken = list[int]()

        def later(work: Any) -> float:
            taken.extend(getattr(work, "args", ()))
            return 1.0

        monkeypatch.setattr(costing, "median_seconds", lambda work: 9.0)
        monkeypatch.setattr(costing, "seconds_of", later)
        run = the_scene(tmp_path, training={"rounds": 9})
        measured = Costing(run, run.reference).measure(tmp_path / "none")
        assert [step.mean for step in measured.steps] == [2.6, 2.6]
        assert taken[:8] == [2, 4, 6, 8] * 2

    def test_a_training_counts_steps_evaluations_and_preparation(self, tmp_path: Path) -> None:
        run = the_scene(tmp_path, training={"rounds": 3, "local_epochs": 2, "evaluate_every": 2})
        # Two clients of one image (2 steps each), one of four in one batch (2 steps); 2 evaluations; 6 images.
        assert training_seconds(run, COST) == pytest.approx(3 * (6 * 0.2) + 2 * 1.0 + 6 * 0.5)
        assert training_seconds(run, replace(COST, start_seconds=9.0)) == training_seconds(run, COST) + 9

    def test_a_run_on_large_images_says_how_long_before(
        self, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Measured once an arm: two arms in one process, of 1,000 rounds whose clients take 3 steps of 2 s together."""
        slow = Cost((StepCost(1, 2.0, 2.0, 2.0),), 0.0, 1.0, 1.0, 0.0)
        monkeypatch.setattr(measuring, "in_own_process", lambda *_: slow)
        tiny["arms"] = {"a": {"defense": "none"}, "b": {"defense": "clip"}}
        tiny["training"]["rounds"] = 1000
        run = Run.create(tmp_path / "run", config_from({**tiny, "workers": 0}))
        assert forecast_text(run, ["a", "b"], Progress()) == "", "small images take minutes"
        monkeypatch.setattr(plan_of_run, "FORECAST_FROM", 16)
        steps = sum(-(-len(client.train) // client.batch_size) for client in run.dataset.clients)
        seconds = 2 * 1000 * steps * 2.0
        assert forecast_text(run, ["a", "b"], Progress()) == f", about {duration(seconds)}"

    def test_a_full_disk_is_said_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(costs.shutil, "disk_usage", lambda _: usage(10**10, 0, 2 * 10**9))
        costs.check_disk(tmp_path, 2 * 10**9)
        with pytest.raises(RunError, match=r"would write 2.1 GB and .* has 2.0 GB free: choose another folder"):
            costs.check_disk(tmp_path, 2_100_000_000)

    def test_bytes_cover_what_a_training_writes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        comparison = Comparison(tmp_path / "out", grid(defenses={"fedavg": {"defense": "none"}}, seeds=[0], workers=0))
        scene = comparison.trial("convnet", 0)
        expected = costs.training_bytes(scene, costs.model_bytes(scene, "fedavg"), 0)
        comparison.run()
        folder = comparison.store.place(scene.trainings["fedavg"])
        written = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        assert expected == pytest.approx(written, rel=0.3)

    def test_a_cost_survives_its_file(self) -> None:
        from dataclasses import asdict

        assert read_record(Cost, json.loads(json.dumps(asdict(COST)))) == COST


def no_cost(*_: object) -> None:
    raise RunError("too large")


class TestMeasuring:
    def measured(self, folder: Path, made: Grid) -> tuple[Comparison, dict[str, str]]:
        comparison = Comparison(folder, made)
        waiting = missing(scorings_of(comparison), comparison.store)
        return comparison, comparison.costs.measure(waiting, Progress())

    def test_a_model_without_the_first_strength_has_a_cost_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        own = {"convnet": {**TINY["models"]["convnet"], "defenses": ["fedavg", "noise-strong"]}}
        found, _ = self.measured(tmp_path / "out", grid(models=own, workers=0))
        assert found.costs.cost_of("convnet", "noise-strong") == COST

    def test_an_ablation_is_forecast_as_its_whole_and_shown_without_a_cost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        found, _ = self.measured(tmp_path / "out", grid(ablations="shadow-1.0", workers=0))
        assert found.costs.cost_of("convnet", "without-momentum") is None
        assert found.costs.cost_of("convnet", "shadow-1.0") == COST
        scene = found.trial("convnet", 0)
        both = [found.costs.seconds(scene.trainings[arm]) for arm in ("without-momentum", "shadow-1.0")]
        assert both[0] == both[1] != costs.UNKNOWN

    def test_what_the_first_client_waits_for_is_no_cost_of_an_image(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits, real = iter([0.5, 0.0]), costing.build_defense

        def build(*given: Any) -> Any:
            time.sleep(next(waits))
            return real(*given)

        monkeypatch.setattr(costing, "build_defense", build)
        found = Costing(the_scene(tmp_path / "out"), "noise-weak").measure(tmp_path / "none")
        assert found.start_seconds > 0.4 and found.prepare_seconds < 0.1

    def test_what_cannot_be_measured_stops_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measuring, "in_own_process", no_cost)
        found, failures = self.measured(tmp_path / "out", grid(workers=0))
        assert failures["convnet, noise-weak: cost"] == "too large"
        scene = found.trial("convnet", 0)
        attack = scorings_of(found)[0].attack
        assert found.costs.seconds(attack) == costs.UNKNOWN
        assert found.costs.seconds(scene.trainings["noise-weak"]) == costs.UNKNOWN

    def test_a_damaged_file_is_named_and_measured_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        found, _ = self.measured(tmp_path / "out", grid(workers=0))
        path = found.store.place(Costing(found.trial("convnet", 0), "noise-weak")) / Costing.file
        path.write_text('{"steps": [{}]}')
        with pytest.raises(RunError, match="delete it to have it computed again"):
            found.costs.cost_of("convnet", "noise-weak")
        path.unlink()
        assert found.costs.measure([], Progress()) == {}
        assert found.costs.cost_of("convnet", "noise-weak") == COST

    def test_before_a_forecast_the_first_seed_has_a_generator_and_others_count_by_their_steps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        found = Comparison(tmp_path / "out", grid(workers=0))
        waiting = found.prepared(Progress())
        first, second = (found.trial("convnet", seed).pretraining for seed in (0, 1))
        assert found.store.has(first)
        assert [task.key for task in waiting if task.kind == "generator"] == [second.key]
        assert found.costs.seconds(second) == TINY["generator"]["steps"] * 0.5

    def test_a_step_of_pretraining_takes_time(self, tmp_path: Path) -> None:
        scene = the_scene(tmp_path, generator={**TINY["generator"], "steps": 1000})
        measured = timing.GeneratorTiming(scene).measure(tmp_path / "none")
        assert 0 < measured.step_seconds < 10, "a thousand steps were not made"

    def test_models_of_all_seeds_are_as_large_as_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built = list[str]()

        def count(scene: Any, arm: str) -> int:
            built.append(arm)
            return 100

        monkeypatch.setattr(costs, "model_bytes", count)
        found = Comparison(tmp_path / "out", grid(workers=0))
        trainings = [training for _, trial in found.trials() for training in trial.trainings.values()]
        assert len({found.costs.bytes_of(training) for training in trainings}) == 1
        assert sorted(built) == sorted(found.trial("convnet", 0).config.arms)

    def test_steps_reported_together_count_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([0.0, 1.0, 7.0])
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
        watch = timing._Stopwatch()
        watch.advance()
        watch.advance(3)
        assert watch.seconds() == 2.0


def test_a_full_disk_is_said_before_generators_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda _: usage(10**10, 0, 10))
    with pytest.raises(RunError, match="would write"):
        Comparison(tmp_path / "out", grid()).run()
    assert not (tmp_path / "out" / "store").exists()

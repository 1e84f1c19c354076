from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.errors import ConfigError, DefenseError, RunError
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison import costs, forecast, measuring, running
from shadow_defense.experiment.comparison.ablations import ABLATIONS
from shadow_defense.experiment.comparison.cell_scores import score_cells
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, Cell, GridRun, grid_run
from shadow_defense.experiment.comparison.costs import Cost, StepCost, cost_from
from shadow_defense.experiment.comparison.gathering import in_all_rounds
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.comparison.isolation import KILLED, run_isolated
from shadow_defense.experiment.comparison.measuring import Measurements
from shadow_defense.experiment.comparison.pictures import pictures
from shadow_defense.experiment.comparison.reading import comparison_names, load_grid
from shadow_defense.experiment.comparison.reporting import write_results
from shadow_defense.experiment.comparison.running import Comparison
from shadow_defense.experiment.scoring import MEAN_IMAGE, Score, score_rows
from shadow_defense.experiment.workers import Call
from shadow_defense.files import read_tensors
from shadow_defense.metrics.confidence import mean_interval, paired_difference
from shadow_defense.progress import Progress

TINY: dict[str, Any] = {
    "title": "tiny",
    "seeds": [0, 1],
    "data": {
        "source": "faces",
        "image_size": 16,
        "public_fraction": 0.3,
        "split": {"kind": "sizes", "sizes": [1, 1, 4], "batch_sizes": [1, 1, 4]},
    },
    "generator": {"z_dim": 8, "width": 8, "steps": 4, "save_every": 4, "batch_size": 8},
    "training": {"rounds": 2, "learning_rate": 0.05},
    "metrics": {"lpips": None},
    "models": {"convnet": {"model": {"name": "convnet", "normalisation": "group", "width": 8}}},
    "defenses": {
        "fedavg": {"defense": "none"},
        "noise": {"defense": "noise", "sweep": {"preset": ["weak", "strong"]}},
        "shadow": {"defense": "shadow", "options": {"latent_iterations": 3}, "sweep": {"strength": [0.19, 1.0]}},
    },
    "attacks": {"inverting-gradients": {"options": {"iterations": 4}, "longest_client": 1, "rounds": [1, 2]}},
}


def grid(**changes: Any) -> Grid:
    return Grid.model_validate({**TINY, **changes})


def the_run(folder: Path, **changes: Any) -> GridRun:
    return grid_run(folder, grid(**changes), "convnet", 0)


def keys(run: GridRun) -> dict[str, str]:
    job = Job("noise-weak", "inverting-gradients", 0, "client-1")
    return {
        "generator": run.generator_key,
        "fedavg": run.training_key("fedavg"),
        "noise": run.training_key("noise-weak"),
        "shadow": run.training_key("shadow-1.0"),
        "attack": run.attack_key(job),
        "score": run.score_key(job),
    }


def changed(folder: Path, **changes: Any) -> set[str]:
    before, after = keys(the_run(folder)), keys(the_run(folder, **changes))
    return {name for name in before if before[name] != after[name]}


class TestGrid:
    def test_a_sweep_gives_one_point_a_value(self) -> None:
        points = grid().points()
        assert list(points) == ["fedavg", "noise-weak", "noise-strong", "shadow-0.19", "shadow-1.0"]
        assert points["noise-strong"].settings.preset == "strong"
        assert points["shadow-0.19"].settings.options == {"latent_iterations": 3, "strength": 0.19}
        assert [points[name].family for name in ("fedavg", "shadow-1.0")] == ["fedavg", "shadow"]
        assert points["shadow-1.0"].label == "1.0"

    def test_batch_norm_policies_can_be_swept(self) -> None:
        swept = {"fedavg": {"defense": "none", "sweep": {"share_bn": ["all", "none"]}}}
        assert [point.settings.share_bn for point in grid(defenses=swept).points().values()] == ["all", "none"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seeds": [1, 1]}, "seeds are 1, 1: give different numbers"),
            ({"defenses": {"x": {"defense": "shadw"}}}, "did you mean 'shadow'"),
            ({"attacks": {"x": {"attack": "dgl"}}}, "unknown attack 'dgl'"),
            ({"defenses": {"x": {"defense": "noise", "preset": "huge"}}}, "valid are: paper, strong, weak"),
            ({"defenses": {"x": {"defense": "noise", "sweep": {"scale": []}}}}, "sweep of scale has no values"),
            ({"defenses": {"x": {"defense": "noise", "sweep": {"a": [1], "b": [2]}}}}, "sweep one option"),
            ({"defenses": {"x": {"defense": "noise", "sweep": {"scale": [-1.0]}}}}, "noise"),
            ({"models": {"m": {"model": {"name": "convnet"}, "trainin": {}}}}, "training"),
            ({"leave_out": [{"model": "m", "defense": "noise", "reason": "r"}]}, "unknown model in leave_out 'm'"),
            ({"leave_out": [{"model": "convnet", "defense": "fedavg", "reason": "r"}]}, "all others are compared"),
            ({"models": {"m": {"model": {}, "defenses": ["fedavg", "noise"]}}}, "did you mean 'noise-weak'"),
            ({"models": {"m": {"model": {}, "defenses": ["noise-weak"]}}}, "lacks 'fedavg'"),
            ({"ablations": "noise-weak"}, "ablations take parts from a Shadow defense"),
            ({"models": {"m": {"defenses": "fedavg"}}}, "models.m.defenses = 'fedavg': expected a list of names"),
            ({"models": {"m": {"defenses": None}}}, "models.m.defenses = None: expected a list of names"),
            ({"models": {"a/b": {}}}, "the name 'a/b' of a model cannot be a file"),
            ({"models": {"m": {"seed": 3}}}, "models.m.seed cannot differ from model to model"),
            ({"models": {"m": {"threads": 2}}}, "models.m.threads cannot differ from model to model"),
            ({"models": {"m": {"attacks": {"dlg": {}}}}}, "unknown attack of models.m 'dlg'"),
            ({"defenses": {**TINY["defenses"], "noise-weak": {}}}, "two defenses of the grid are called 'noise-weak'"),
            (
                {"defenses": {"f": {"defense": "noise", "sweep": {"scale": [0.1, 0.1]}}}},
                "two defenses of the grid are called 'f-0.1'",
            ),
            (
                {"ablations": "shadow-1.0", "defenses": {**TINY["defenses"], "uniform-noise": {}}},
                "a defense is called 'uniform-noise', as one of the ablations is",
            ),
        ],
    )
    def test_what_cannot_be_compared_is_said_in_one_line(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises((ConfigError, DefenseError)) as raised:
            grid(**change)
        assert message in str(raised.value)

    def test_each_ablation_takes_one_part_and_keeps_the_rest(self) -> None:
        arms = grid(ablations="shadow-1.0").arms("convnet")
        assert set(ABLATIONS) < set(arms)
        for name, change in ABLATIONS.items():
            assert arms[name].options == {"latent_iterations": 3, "strength": 1.0, **change}
            # An option that does not exist would fail only hours later.
            arms[name].settings()

    def test_what_is_left_out_is_left_out_of_that_model_only(self) -> None:
        two = {"a": TINY["models"]["convnet"], "b": TINY["models"]["convnet"]}
        made = grid(models=two, leave_out=[{"model": "b", "defense": "noise", "reason": "r"}])
        assert "noise-weak" in made.arms("a") and "noise-weak" not in made.arms("b")


class TestContentKeys:
    def test_a_setting_changes_the_cells_that_depend_on_it_and_no_others(self, tmp_path: Path) -> None:
        defenses = TINY["defenses"]
        assert changed(tmp_path) == set()
        assert changed(tmp_path, title="another", workers=1) == set()
        assert changed(tmp_path, metrics={"lpips": None, "foreground_share": 0.5}) == {"score"}
        longer = {"inverting-gradients": {**TINY["attacks"]["inverting-gradients"], "options": {"iterations": 5}}}
        assert changed(tmp_path, attacks=longer) == {"attack", "score"}
        shadow = {**defenses["shadow"], "options": {"latent_iterations": 4}}
        assert changed(tmp_path, defenses={**defenses, "shadow": shadow}) == {"shadow"}
        assert changed(tmp_path, generator={**TINY["generator"], "steps": 5}) == {"generator", "shadow"}
        everything = {"fedavg", "noise", "shadow", "attack", "score"}
        assert changed(tmp_path, training={"rounds": 2, "learning_rate": 0.1}) == everything
        assert changed(tmp_path, data={**TINY["data"], "image_size": 24}) == {*everything, "generator"}

    def test_a_preset_and_its_settings_spelt_out_are_one_cell(self, tmp_path: Path) -> None:
        spelt = {"fedavg": {"defense": "none"}, "noise-weak": {"defense": "noise", "options": {"scale": 1e-3}}}
        run = grid_run(tmp_path, grid(defenses=spelt), "convnet", 0)
        assert run.training_key("noise-weak") == the_run(tmp_path).training_key("noise-weak")

    def test_other_lesion_masks_are_other_scores(self, tmp_path: Path) -> None:
        def masked(value: bool) -> GridRun:
            run = GridRun(tmp_path, grid().run_config("convnet", 0))
            clients = [
                replace(client, train=replace(client.train, masks=torch.full((len(client.train), 16, 16), value)))
                for client in run.dataset.clients
            ]
            run.dataset = replace(run.dataset, clients=tuple(clients))
            return run

        first, second = keys(masked(True)), keys(masked(False))
        assert {name for name in first if first[name] != second[name]} == {"score"}

    def test_another_seed_is_another_cell(self, tmp_path: Path) -> None:
        other = grid_run(tmp_path, grid(), "convnet", 1)
        assert not set(keys(other).values()) & set(keys(the_run(tmp_path)).values())


def succeed(path: Path) -> None:
    path.write_text("done")


def fail_as_a_user(path: Path) -> None:
    raise DefenseError("too strong")


def fail_as_a_programmer(path: Path) -> None:
    raise KeyError("lost")


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class TestIsolation:
    def test_failures_and_deaths_leave_the_others_alone(self, tmp_path: Path) -> None:
        work = {"a": succeed, "b": fail_as_a_user, "c": die, "d": succeed, "e": fail_as_a_programmer, "f": succeed}
        failed = run_isolated(
            {name: Call(function, (tmp_path / name,)) for name, function in work.items()},
            traces=tmp_path / "traces",
            workers=2,
            threads=1,
            name="",
            total_steps=0,
            progress=Progress(),
        )
        assert {name for name in work if (tmp_path / name).exists()} == {"a", "d", "f"}
        assert failed["b"] == "too strong"
        assert failed["c"] == KILLED
        assert failed["e"].startswith("KeyError: 'lost' (trace in ")
        (trace,) = (tmp_path / "traces").iterdir()
        assert "fail_as_a_programmer" in trace.read_text()


class TestForecast:
    COST = Cost((StepCost(1, 0.1, 0.2), StepCost(8, 0.4, 2.0)), 0.5, 100, 150, 1.0)

    def test_ratios_are_those_of_the_largest_batch(self) -> None:
        assert self.COST.time_ratio == 5.0
        assert self.COST.memory_ratio == 1.5
        assert [self.COST.step_seconds(size) for size in (1, 4, 5, 32)] == [0.2, 0.2, 2.0, 2.0]

    def test_a_training_counts_steps_evaluations_and_preparation(self, tmp_path: Path) -> None:
        run = the_run(tmp_path, training={"rounds": 3, "local_epochs": 2, "evaluate_every": 2})
        # Two clients of one image (2 steps each), one of four in one batch (2 steps); 2 evaluations; 6 images.
        assert forecast.training_seconds(run, self.COST) == pytest.approx(3 * (6 * 0.2) + 2 * 1.0 + 6 * 0.5)

    def test_a_full_disk_is_said_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: usage(10**10, 0, 2 * 10**9))
        forecast.check_disk(tmp_path, 2 * 10**9)
        with pytest.raises(RunError, match=r"would write 2.1 GB and .* has 2.0 GB free: choose another folder"):
            forecast.check_disk(tmp_path, 2_100_000_000)

    def test_bytes_cover_what_a_training_writes(self, tmp_path: Path) -> None:
        run = the_run(tmp_path)
        comparison = Comparison(tmp_path, grid(defenses={"fedavg": {"defense": "none"}}, seeds=[0]))
        model = run.new_model("fedavg")
        expected = forecast.training_bytes(comparison.of("convnet", 0), model, 0)
        comparison.run()
        folder = comparison.of("convnet", 0).arm_folder("fedavg")
        written = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        assert expected == pytest.approx(written, rel=0.3)

    def test_a_cost_survives_its_file(self) -> None:
        from dataclasses import asdict

        assert cost_from(json.loads(json.dumps(asdict(self.COST)))) == self.COST


def fixed_cost(*_: object) -> Cost:
    return TestForecast.COST


def no_cost(*_: object) -> None:
    raise RunError("too large")


class TestMeasuring:
    def measured(self, folder: Path, made: Grid) -> Measurements:
        found = Measurements(folder, made, lambda model, seed: grid_run(folder, made, model, seed))
        found.measure([("convnet", "inverting-gradients")], Progress())
        return found

    def test_a_model_without_the_first_strength_has_a_cost_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        own = {"convnet": {**TINY["models"]["convnet"], "defenses": ["fedavg", "noise-strong"]}}
        found = self.measured(tmp_path, grid(models=own))
        assert set(found.costs) == {("convnet", "fedavg"), ("convnet", "noise-strong")}
        assert found.cost_of("convnet", "noise-strong") == TestForecast.COST

    def test_an_ablation_is_forecast_as_its_whole_and_shown_without_a_cost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        found = self.measured(tmp_path, grid(ablations="shadow-1.0"))
        assert found.cost_of("convnet", "without-momentum") is None
        assert found.cost_of("convnet", "shadow-1.0") == TestForecast.COST
        both = [found.seconds(Cell("convnet", 0, arm)) for arm in ("without-momentum", "shadow-1.0")]
        assert both[0] == both[1] != measuring.UNKNOWN

    def test_what_cannot_be_measured_stops_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measuring, "in_own_process", no_cost)
        found = self.measured(tmp_path, grid())
        assert found.failures["convnet, noise-weak: cost"] == "too large"
        job = Job("fedavg", "inverting-gradients", 0, "client-1")
        assert found.seconds(Cell("convnet", 0, "fedavg", job)) == measuring.UNKNOWN
        assert found.seconds(Cell("convnet", 0, "noise-weak")) == measuring.UNKNOWN

    @pytest.mark.parametrize("damage", ["", "[]", '{"steps": [{}]}'])
    def test_a_damaged_file_is_measured_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        self.measured(tmp_path, grid())
        for path in (tmp_path / "cells").glob("cost-*.json"):
            path.write_text(damage)
        found = self.measured(tmp_path, grid())
        assert found.failures == {} and found.costs["convnet", "noise-weak"] == TestForecast.COST

    def test_steps_reported_together_count_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([0.0, 1.0, 7.0])
        monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
        watch = costs._Stopwatch()
        watch.advance()
        watch.advance(3)
        assert watch.seconds() == 2.0


class TestReading:
    def test_every_comparison_of_the_package_is_valid_and_opens_with_its_command(self) -> None:
        assert "pneumoniamnist" in comparison_names()
        folder = Path(__file__).parents[2] / "src/shadow_defense/presets/comparisons"
        for name in comparison_names():
            load_grid(name)
            assert (folder / f"{name}.yaml").read_text().startswith(f"# shadow-defense compare {name}")

    def test_a_run_is_a_grid_of_its_arms(self) -> None:
        made = load_grid("demo")
        assert list(made.defenses) == ["fedavg", "shadow-paper", "shadow-strong"]
        assert list(made.models) == ["convnet"]

    def test_flags_choose_from_the_grid_and_the_registry(self, tmp_path: Path) -> None:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(TINY))
        made = load_grid(
            str(file),
            defenses=["noise", "soteria:strong"],
            attacks=["dlg"],
            seeds=[7],
            rounds=[2],
            clients=["client-1"],
        )
        assert list(made.defenses) == ["fedavg", "noise", "soteria-strong"]
        assert made.defenses["noise"].sweep == {"preset": ("weak", "strong")}
        assert made.defenses["soteria-strong"].preset == "strong"
        assert made.seeds == (7,)
        assert (made.attacks["dlg"].rounds, made.attacks["dlg"].clients) == ((2,), ("client-1",))

    def test_flags_count_for_what_a_model_has_of_its_own(self) -> None:
        def attacks(made: Grid, model: str) -> dict[str, Any]:
            found = made.run_config(model, 0).attacks
            return {name: (each.attack, each.rounds, each.clients) for name, each in found.items()}

        chosen = load_grid("pneumoniamnist", rounds=[2], clients=["client-3"])
        assert {each[1:] for each in attacks(chosen, "resnet18").values()} == {((2,), ("client-3",))}
        chosen = load_grid("pneumoniamnist", attacks=["inverting-gradients"])
        assert attacks(chosen, "resnet18") == {"inverting-gradients": ("inverting-gradients", (1,), ("client-1",))}
        chosen = load_grid("pneumoniamnist", defenses=["shadow", "mixup"])
        assert list(chosen.arms("resnet18")) == ["fedavg", "shadow-0.19", "shadow-1.0", "mixup"]

    def test_a_combination_can_be_chosen(self) -> None:
        made = load_grid("demo", defenses=["shadow+clip"])
        assert made.defenses["shadow-clip"].defense == "shadow+clip"

    @pytest.mark.parametrize(
        ("values", "flags", "message"),
        [
            ({**TINY, "defenses": "x"}, {"defenses": ["noise"]}, "defenses = 'x': expected names"),
            ({**TINY, "attacks": {"a": None}}, {"rounds": [1]}, "attacks = {'a': None}: expected names"),
            ({**TINY, "attacks": ["a"]}, {"attacks": ["dlg"]}, "attacks = ['a']: expected names"),
            ({**TINY, "models": ["a"]}, {}, "models = ['a']: expected names"),
            ({**TINY, "leave_out": ["x"]}, {"defenses": ["noise"]}, "leave_out.0 = 'x'"),
            ({"defenses": TINY["defenses"]}, {}, "names defenses and no models"),
            ({"model": "x"}, {}, "model = 'x'"),
        ],
    )
    def test_wrong_types_are_said_in_one_line(
        self, tmp_path: Path, values: dict[str, Any], flags: dict[str, Any], message: str
    ) -> None:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(values))
        with pytest.raises(ConfigError) as raised:
            load_grid(str(file), **flags)
        assert message in str(raised.value)

    def test_an_unknown_comparison_lists_them(self) -> None:
        with pytest.raises(ConfigError, match="unknown comparison 'pneumoniamnst': did you mean 'pneumoniamnist'"):
            load_grid("pneumoniamnst")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"defenses": ["shadw"]}, "did you mean 'shadow'"),
            ({"defenses": ["noise:huge"]}, "unknown preset of defense 'noise' 'huge'"),
            ({"attacks": ["gradinv"]}, "did you mean 'gradinversion'"),
            ({"rounds": [9]}, "asks for round 9"),
            ({"defenses": ["noise"], "ablations": True}, "the grid has none"),
        ],
    )
    def test_unknown_names_list_the_valid_ones(self, tmp_path: Path, flags: dict[str, Any], message: str) -> None:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump({**TINY, "defenses": {"fedavg": {"defense": "none"}}}))
        with pytest.raises((ConfigError, DefenseError)) as raised:
            load_grid(str(file), **flags)
        assert message in str(raised.value)


def test_a_model_that_cannot_carry_a_defense_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    batch = {"convnet": {"model": {"name": "convnet", "normalisation": "batch", "width": 8}}}
    defenses = {"fedavg": {"defense": "none"}, "dp": {"defense": "dp-sgd"}}
    with pytest.raises(DefenseError, match=r"^dp with convnet: .*normalisation.*leave the pair out: leave_out"):
        Comparison(tmp_path / "out", grid(models=batch, defenses=defenses)).run()
    assert not (tmp_path / "out" / "cells").exists()


def test_a_swept_defense_is_left_out_by_its_own_name(tmp_path: Path) -> None:
    batch = {"convnet": {"model": {"name": "convnet", "normalisation": "batch", "width": 8}}}
    defenses = {"fedavg": {"defense": "none"}, "dp": {"defense": "dp-sgd", "sweep": {"preset": ["weak", "paper"]}}}
    with pytest.raises(DefenseError, match=r"^dp-weak with convnet: .*leave_out: \[\{model: convnet, defense: dp, "):
        Comparison(tmp_path, grid(models=batch, defenses=defenses)).check()


def test_a_full_disk_is_said_before_generators_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: usage(10**10, 0, 10))
    with pytest.raises(RunError, match="would write"):
        Comparison(tmp_path / "out", grid()).run()
    assert not (tmp_path / "out" / "cells").exists()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used: Not a directory; choose another folder with --out"):
        Comparison(tmp_path / "file" / "out", grid()).check()


def test_the_data_of_many_runs_are_loaded_once(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, grid(seeds=list(range(12))))
    first = [run for _, _, run in comparison.runs()]
    assert all(run is again for run, (_, _, again) in zip(first, comparison.runs(), strict=True))


def test_cells_that_nothing_tells_apart_are_computed_once_and_fail_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two processes would write the same folder at once."""
    twins = {"fedavg": {"defense": "none"}, "a": {"defense": "noise"}, "b": {"defense": "noise", "preset": "paper"}}
    comparison = Comparison(tmp_path, grid(defenses=twins, seeds=[0]))
    run = comparison.of("convnet", 0)
    trained: list[str] = []
    attacked: list[str] = []

    def pretend(calls: dict[Path, Call], **_: Any) -> dict[Path, str]:
        failed = {}
        for place, call in calls.items():
            what = call.arguments[4]
            if isinstance(what, Job):
                attacked.append(run.attack_key(what))
            else:
                trained.append(run.training_key(what))
                if what in ("a", "b"):
                    failed[place] = "broken"
        return failed

    monkeypatch.setattr(running, "run_isolated", pretend)
    monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
    monkeypatch.setattr(Measurements, "_measure_attack", lambda *_: None)
    comparison.run()
    assert len(trained) == len(set(trained)) == 2
    # The undefended update and the random one, two rounds of two clients: none on a training that failed.
    assert len(attacked) == len(set(attacked)) == 2 * 2 * 2
    assert set(comparison.failures) == {f"convnet, seed 0, {arm}: training" for arm in ("a", "b")}


def journal(run: GridRun, arm: str, text: str) -> None:
    folder = run.arm_folder(arm)
    folder.mkdir(parents=True)
    (folder / "history.json").write_text(text)


@pytest.mark.parametrize("text", ['{"rounds_done": 1, "history": [{}]}', "{damaged"])
def test_a_seed_whose_reference_is_not_finished_is_left_unscored(tmp_path: Path, text: str) -> None:
    comparison = Comparison(tmp_path, grid())
    run = comparison.of("convnet", 0)
    journal(run, "fedavg", text)
    job = Job("noise-weak", "inverting-gradients", 0, "client-1")
    images = run.client("client-1").train.unit_images()
    found = Reconstruction(images, torch.zeros(1, dtype=torch.int64), 0.0, 1, 1.0)
    found.save(run.reconstruction_path("noise-weak", job.attack, 0, "client-1"))
    assert score_cells(comparison) == {"convnet": []}
    assert not comparison.is_done(Cell("convnet", 0, "fedavg"))


def test_pictures_show_the_reconstruction_of_the_image_beside_it(tmp_path: Path) -> None:
    """Attacks return a client's images in no telling order."""
    attacks = {"inverting-gradients": {"clients": ["client-3"], "rounds": [1]}}
    comparison = Comparison(tmp_path, grid(attacks=attacks))
    run = comparison.of("convnet", 0)
    truths = run.client("client-3").train
    images = truths.unit_images().flip(0)
    path = run.reconstruction_path("fedavg", "inverting-gradients", 0, "client-3")
    Reconstruction(images, truths.labels.flip(0), 0.0, 1, 1.0).save(path)
    score = Score(
        "fedavg", "inverting-gradients", 0, "seed 0, client-3", score_rows(images, truths, torch.ones(4, 16, 16), None)
    )
    (shown,) = pictures(comparison, {"convnet": [score]})
    assert torch.equal(shown.rebuilt["fedavg"], shown.original)


def test_an_image_that_was_missed_in_a_round_is_in_no_mean_over_all_rounds(tmp_path: Path) -> None:
    config = the_run(tmp_path).config
    scores = [
        Score(arm, "inverting-gradients", round, client, ())
        for arm, round, client in (("a", 0, "c"), ("a", 1, "c"), ("b", 0, "c"), ("b", 1, "d"), ("b", 0, "d"))
    ]
    kept = in_all_rounds(scores, "inverting-gradients", config)
    assert [(score.arm, score.round, score.client) for score in kept] == [
        *(("a", 0, "c"), ("a", 1, "c"), ("b", 1, "d"), ("b", 0, "d"))
    ]


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="holds files that no comparison wrote"):
        Comparison(tmp_path, grid())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, dict[str, Any]]:
    """A whole tiny comparison with ablations, one of whose trainings fails."""
    folder = tmp_path_factory.mktemp("comparison") / "out"
    broken = {"noise-broken": {"defense": "noise", "options": {"scale": 1e38}}}
    comparison = Comparison(folder, grid(defenses={**TINY["defenses"], **broken}, ablations="shadow-1.0"))
    comparison.run()
    return comparison, write_results(comparison, "shadow-defense compare tiny.yaml")


@pytest.mark.slow
class TestWholeComparison:
    def test_every_cell_of_the_others_is_there_and_the_broken_one_is_named(
        self, finished: tuple[Comparison, dict[str, Any]]
    ) -> None:
        comparison, results = finished
        missing = [cell for cell in comparison.cells() if not comparison.is_done(cell)]
        assert {cell.arm for cell in missing} == {"noise-broken"}
        failed = [entry["cell"] for entry in results["failures"]]
        assert {f"convnet, seed {seed}, noise-broken: training" for seed in (0, 1)} <= set(failed)
        assert any("NaN or infinity" in entry["error"] for entry in results["failures"])
        shown = [row["defense"] for row in results["tables"][0]["rows"]]
        assert shown == [
            *("fedavg", "noise-weak", "noise-strong", "shadow-0.19", "shadow-1.0"),
            *(MEAN_IMAGE, RANDOM_UPDATE),
        ]

    def test_numbers_are_those_of_the_stored_images_and_trainings(
        self, finished: tuple[Comparison, dict[str, Any]]
    ) -> None:
        """Computed again here with scikit-image, from the files."""
        from skimage.metrics import peak_signal_noise_ratio

        comparison, results = finished
        psnr: dict[str, list[float]] = {}
        f1: dict[str, list[float]] = {}
        for arm in ("fedavg", "noise-strong", RANDOM_UPDATE):
            for seed in (0, 1):
                run = comparison.of("convnet", seed)
                for client in ("client-1", "client-2"):
                    truth = run.client(client).train.unit_images()[0].numpy()
                    both = [
                        peak_signal_noise_ratio(
                            truth,
                            Reconstruction.load(run.reconstruction_path(arm, "inverting-gradients", round, client))
                            .images[0]
                            .numpy(),
                            data_range=1.0,
                        )
                        for round in (0, 1)
                    ]
                    psnr.setdefault(arm, []).append(sum(both) / 2)
                if arm != RANDOM_UPDATE:
                    history = json.loads((run.arm_folder(arm) / "history.json").read_text())["history"]
                    f1.setdefault(arm, []).append(history[-1]["test"]["f1_macro"])
        rows = {row["defense"]: row for row in results["tables"][0]["rows"]}
        for arm, values in psnr.items():
            expected = mean_interval(values)
            assert rows[arm]["images"] == 4
            assert rows[arm]["metrics"]["psnr_whole"]["mean"] == pytest.approx(expected.mean, abs=1e-4)
            assert rows[arm]["metrics"]["psnr_whole"]["interval"] == pytest.approx(expected.interval, abs=1e-3)
        expected = paired_difference(psnr["noise-strong"], psnr["fedavg"])
        assert rows["noise-strong"]["difference"]["psnr_whole"]["mean"] == pytest.approx(expected.mean, abs=1e-4)
        assert rows["noise-strong"]["utility"]["f1_macro"]["mean"] == pytest.approx(sum(f1["noise-strong"]) / 2)
        difference = paired_difference(f1["noise-strong"], f1["fedavg"])
        assert rows["noise-strong"]["utility_difference"]["f1_macro"]["mean"] == pytest.approx(difference.mean)
        assert rows["noise-strong"]["seeds"] == 2

    def test_baselines_count_the_seeds_that_they_were_scored_on(
        self, finished: tuple[Comparison, dict[str, Any]]
    ) -> None:
        rows = {row["defense"]: row for row in finished[1]["tables"][0]["rows"]}
        assert [rows[name]["seeds"] for name in (MEAN_IMAGE, RANDOM_UPDATE)] == [2, 2]

    def test_damaged_files_cost_their_own_cells_and_no_others(
        self, finished: tuple[Comparison, dict[str, Any]], tmp_path: Path
    ) -> None:
        shutil.copytree(finished[0].folder, tmp_path / "out")
        comparison = Comparison(tmp_path / "out", finished[0].grid)
        run = comparison.of("convnet", 0)
        job = Job("noise-weak", "inverting-gradients", 0, "client-1")
        run.reconstruction_path(job.arm, job.attack, job.round, job.client).write_text("")
        run.cell("score", run.score_key(job)).with_suffix(".json").unlink()
        other = replace(job, client="client-2")
        run.cell("score", run.score_key(other)).with_suffix(".json").write_text('{"rows": []}')
        (run.arm_folder("noise-strong") / "history.json").write_text("{")
        results = write_results(comparison, "")
        ((cell, error),) = comparison.failures.items()
        assert cell == str(Cell("convnet", 0, "noise-weak", job)) and "is damaged: delete it" in error
        before, after = ({row["defense"]: row for row in each["tables"][0]["rows"]} for each in (finished[1], results))
        assert after["fedavg"]["metrics"] == before["fedavg"]["metrics"]
        assert after["noise-weak"]["images"] == before["noise-weak"]["images"] - 1
        assert after["noise-strong"]["seeds"] == 1

    def test_the_random_update_is_another_one(self, finished: tuple[Comparison, dict[str, Any]]) -> None:
        run = finished[0].of("convnet", 0)
        paths = [
            run.reconstruction_path(arm, "inverting-gradients", 0, "client-1") for arm in ("fedavg", RANDOM_UPDATE)
        ]
        first, second = (Reconstruction.load(path).images for path in paths)
        assert not first.equal(second)

    def test_ablations_stand_apart_beside_their_whole(self, finished: tuple[Comparison, dict[str, Any]]) -> None:
        _, results = finished
        (ablated,) = results["ablations"]
        names = [row["defense"] for row in ablated["rows"]]
        assert names == ["fedavg", "shadow-1.0", *ABLATIONS, MEAN_IMAGE, RANDOM_UPDATE]
        planes = [point["defense"] for point in results["planes"][0]["points"]]
        assert not set(planes) & set(ABLATIONS)

    def test_files_of_the_report(self, finished: tuple[Comparison, dict[str, Any]]) -> None:
        folder = finished[0].folder
        page = (folder / "comparison.html").read_text()
        assert "shadow-0.19" in page and "<svg" in page and "noise-broken" in page
        assert (folder / "plane-convnet-inverting-gradients.svg").stat().st_size > 1000
        assert "| noise-strong |" in (folder / "comparison.md").read_text()

    def test_a_second_call_computes_nothing_but_the_failures(self, finished: tuple[Comparison, dict[str, Any]]) -> None:
        comparison, results = finished
        cells = comparison.folder / "cells"

        def stamps() -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in cells.rglob("*") if path.is_file()}

        before = stamps()
        again = Comparison(comparison.folder, comparison.grid)
        again.run()
        repeated = write_results(again, "shadow-defense compare tiny.yaml")
        assert {path for path, stamp in stamps().items() if before.get(path) != stamp} == set()
        assert repeated["tables"] == results["tables"]


@pytest.mark.slow
def test_killed_at_any_time_it_ends_with_the_same_images(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    small = {**TINY, "seeds": [0], "defenses": {name: TINY["defenses"][name] for name in ("fedavg", "shadow")}}
    file.write_text(yaml.safe_dump(small))
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    command = [sys.executable, "-m", "shadow_defense.cli", "compare", str(file), "--quiet", "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(unbroken)], check=True, timeout=300)
    duration = time.monotonic() - started
    kills = 0
    for share in (0.3, 0.45, 0.6, 0.7):
        process = subprocess.Popen([*command, str(broken)], start_new_session=True)
        try:
            process.wait(timeout=share * duration)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills
    subprocess.run([*command, str(broken)], check=True, timeout=300)
    images = {}
    for folder in (unbroken, broken):
        found = sorted((folder / "cells").glob("attack-*.safetensors"))
        images[folder] = {path.name: read_tensors(path)[0]["images"] for path in found}
    assert images[unbroken].keys() == images[broken].keys() and len(images[unbroken]) == 3 * 2 * 2 + 4
    assert all(images[unbroken][name].equal(images[broken][name]) for name in images[unbroken])


def test_a_cell_is_named_for_people() -> None:
    job = Job("noise", "dlg", 0, "client-1")
    assert str(Cell("convnet", 1, "noise", job)) == "convnet, seed 1, noise: dlg, round 1, client-1"

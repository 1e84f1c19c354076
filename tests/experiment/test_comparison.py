from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.errors import ConfigError, DefenseError, RunError
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison import forecast
from shadow_defense.experiment.comparison.ablations import ABLATIONS
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, GridRun, grid_run
from shadow_defense.experiment.comparison.costs import Cost, StepCost, cost_from
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.comparison.isolation import KILLED, run_isolated
from shadow_defense.experiment.comparison.reading import comparison_names, load_grid
from shadow_defense.experiment.comparison.reporting import write_results
from shadow_defense.experiment.comparison.running import Cell, Comparison
from shadow_defense.experiment.scoring import MEAN_IMAGE
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

"""A whole tiny comparison, from its generators to its report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison.ablations import ABLATIONS
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, Cell
from shadow_defense.experiment.comparison.reporting import write_results
from shadow_defense.experiment.comparison.running import Comparison
from shadow_defense.experiment.scoring import MEAN_IMAGE
from shadow_defense.files import read_tensors
from shadow_defense.metrics.confidence import mean_interval, paired_difference
from tests.experiment.comparison_grid import TINY, grid


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

"""A whole tiny comparison, from its generators to its report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.experiment.plans.comparison import grid as grids
from shadow_defense.experiment.plans.comparison.gathering import write_results
from shadow_defense.experiment.plans.comparison.plan import Comparison
from shadow_defense.experiment.plans.run import STAGES
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks import measuring
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION, Attacking
from shadow_defense.experiment.tasks.pretraining import Pretraining
from shadow_defense.experiment.tasks.scoring import SCORES, Scoring
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.metrics.confidence import mean_interval, paired_difference
from shadow_defense.progress import Progress
from shadow_defense.report.records.comparison import ComparisonRecord
from shadow_defense.report.records.reading import load_record
from shadow_defense.report.records.scores import MEAN_IMAGE, RANDOM_UPDATE
from tests.experiment.comparison_grid import TINY, fixed_cost, grid, scorings_of

ABLATIONS = {name: grids.ABLATIONS[name] for name in ("without-growth", "uniform-noise")}


@pytest.fixture(scope="module", autouse=True)
def few_parts() -> Iterator[None]:
    """Two parts are taken away here: that each can be is in test_comparison_grid.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "ABLATIONS", ABLATIONS)
        yield


@pytest.fixture(scope="module")
def finished(few_parts: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, ComparisonRecord]:
    """A whole tiny comparison with ablations, one of whose trainings fails."""
    folder = tmp_path_factory.mktemp("comparison") / "out"
    broken = {"noise-broken": {"defense": "noise", "options": {"scale": 1e38}}}
    # Nothing of the third client is looked at, and what protects it takes longest.
    data = {**TINY["data"], "split": {"kind": "sizes", "sizes": [1, 1, 2], "batch_sizes": [1, 1, 2]}}
    made = grid(data=data, defenses={**TINY["defenses"], **broken}, ablations="shadow-1.0", workers=0)
    comparison = Comparison(folder, made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "in_own_process", fixed_cost)
        comparison.run()
    return comparison, write_results(comparison, "shadow-defense compare tiny.yaml")


def scorings(comparison: Comparison, seed: int = 0) -> dict[tuple[str, int, str], Scoring]:
    """By arm, round and client."""
    found = (scoring for scoring in scorings_of(comparison) if scoring.scene.config.seed == seed)
    return {(scoring.arm, scoring.job.round, scoring.job.client): scoring for scoring in found}


def rebuilt(comparison: Comparison, scoring: Scoring) -> Reconstruction:
    return Reconstruction.load(comparison.store.place(scoring.attack) / RECONSTRUCTION)


@pytest.mark.slow
class TestWholeComparison:
    def test_every_cell_of_the_others_is_there_and_the_broken_one_is_named(
        self, finished: tuple[Comparison, ComparisonRecord]
    ) -> None:
        comparison, results = finished
        lacking = [scoring for scoring in scorings_of(comparison) if not comparison.store.has(scoring)]
        assert {scoring.arm for scoring in lacking} == {"noise-broken"}
        failed = [entry.cell for entry in results.failures]
        assert {f"convnet, seed {seed}, noise-broken: training" for seed in (0, 1)} <= set(failed)
        assert any("NaN or infinity" in entry.error for entry in results.failures)
        shown = [row.arm for row in results.tables[0].rows]
        assert shown == [
            *("fedavg", "noise-weak", "noise-strong", "shadow-0.19", "shadow-1.0"),
            *(MEAN_IMAGE, RANDOM_UPDATE),
        ]

    def test_numbers_are_those_of_the_stored_images_and_trainings(
        self, finished: tuple[Comparison, ComparisonRecord]
    ) -> None:
        """Computed again here with scikit-image, from the files."""
        from skimage.metrics import peak_signal_noise_ratio

        comparison, results = finished
        psnr: dict[str, list[float]] = {}
        f1: dict[str, list[float]] = {}
        for arm in ("fedavg", "noise-strong", RANDOM_UPDATE):
            for seed in (0, 1):
                scene, done = comparison.trial("convnet", seed), scorings(comparison, seed)
                for client in ("client-1", "client-2"):
                    truth = scene.client(client).train.unit_images()[0].numpy()
                    both = [
                        peak_signal_noise_ratio(
                            truth,
                            rebuilt(comparison, done[arm, round, client]).images[0].numpy(),
                            data_range=1.0,
                        )
                        for round in (0, 1)
                    ]
                    psnr.setdefault(arm, []).append(sum(both) / 2)
                if arm != RANDOM_UPDATE:
                    history = scene.history(arm)
                    f1.setdefault(arm, []).append(history[-1].test["f1_macro"] or 0.0)
        rows = {row.arm: row for row in results.tables[0].rows}
        for arm, values in psnr.items():
            expected = mean_interval(values)
            assert rows[arm].images == 4
            assert rows[arm].metrics["psnr_whole"].mean == pytest.approx(expected.mean, abs=1e-4)
            assert rows[arm].metrics["psnr_whole"].interval == pytest.approx(expected.interval, abs=1e-3)
        expected = paired_difference(psnr["noise-strong"], psnr["fedavg"])
        assert rows["noise-strong"].difference["psnr_whole"].mean == pytest.approx(expected.mean, abs=1e-4)
        assert rows["noise-strong"].utility["f1_macro"].mean == pytest.approx(sum(f1["noise-strong"]) / 2)
        difference = paired_difference(f1["noise-strong"], f1["fedavg"])
        assert rows["noise-strong"].utility_difference["f1_macro"].mean == pytest.approx(difference.mean)
        assert rows["noise-strong"].seeds == 2

    def test_baselines_count_the_seeds_that_they_were_scored_on(
        self, finished: tuple[Comparison, ComparisonRecord]
    ) -> None:
        rows = {row.arm: row for row in finished[1].tables[0].rows}
        assert [rows[name].seeds for name in (MEAN_IMAGE, RANDOM_UPDATE)] == [2, 2]

    def test_damaged_files_cost_their_own_cells_and_no_others(
        self, finished: tuple[Comparison, ComparisonRecord], tmp_path: Path
    ) -> None:
        shutil.copytree(finished[0].folder, tmp_path / "apart" / "out")
        comparison = Comparison(tmp_path / "apart" / "out", finished[0].grid)
        done, store = scorings(comparison), comparison.store
        damaged, missed = (done["noise-weak", 0, client] for client in ("client-1", "client-2"))
        (store.place(damaged.attack) / RECONSTRUCTION).write_text("")
        (store.place(damaged) / SCORES).unlink()
        (store.place(missed) / SCORES).unlink()
        scene = comparison.trial("convnet", 0)
        (store.place(scene.trainings["noise-strong"]) / "history.json").write_text("{")
        comparison.run()
        results = write_results(comparison, "")
        label = "convnet, seed 0, noise-weak: inverting-gradients, round 1, client-1, scores"
        assert "delete it" in comparison.failures[label]
        assert "history.json" in comparison.failures["convnet, seed 0, noise-strong: training"]
        before, after = ({row.arm: row for row in each.tables[0].rows} for each in (finished[1], results))
        assert after["fedavg"].metrics == before["fedavg"].metrics
        assert after["noise-weak"].images == before["noise-weak"].images - 1
        assert after["noise-strong"].seeds == 1

    def test_the_random_update_is_another_one(self, finished: tuple[Comparison, ComparisonRecord]) -> None:
        done = scorings(finished[0])
        first, second = (rebuilt(finished[0], done[arm, 0, "client-1"]).images for arm in ("fedavg", RANDOM_UPDATE))
        assert not first.equal(second)

    def test_ablations_stand_apart_beside_their_whole(self, finished: tuple[Comparison, ComparisonRecord]) -> None:
        _, results = finished
        (ablated,) = results.ablations
        names = [row.arm for row in ablated.rows]
        assert names == ["fedavg", "shadow-1.0", *ABLATIONS, MEAN_IMAGE, RANDOM_UPDATE]
        planes = [point.arm for point in results.planes[0].points]
        assert not set(planes) & set(ABLATIONS)

    def test_files_of_the_report(self, finished: tuple[Comparison, ComparisonRecord]) -> None:
        folder = finished[0].folder
        page = (folder / "comparison.html").read_text()
        assert "shadow-0.19" in page and "<svg" in page and "noise-broken" in page
        assert load_record(ComparisonRecord, folder / "comparison.json", "again") == finished[1]
        computed = {path.parent.name for path in (folder / "store").glob("*/task.json")}
        traced = {f"{task.kind}-{task.key}" for task in finished[1].tasks}
        # A step of attacks and generators was measured for the forecast alone; the broken arm's cost stands on no row.
        assert {name.rpartition("-")[0] for name in computed - traced} <= {"attack-cost", "generator-cost", "cost"}
        assert {"training", "generator", "score", "cost"} <= {
            task.kind for task in finished[1].tasks
        } and traced <= computed
        assert (folder / "plane-convnet-inverting-gradients.svg").stat().st_size > 1000
        assert "| noise-strong |" in (folder / "comparison.md").read_text()

    def test_a_second_call_computes_nothing_but_the_failures(
        self, finished: tuple[Comparison, ComparisonRecord]
    ) -> None:
        comparison, results = finished
        cells = comparison.folder / "store"

        def stamps() -> dict[Path, int]:
            # Of finished results: a training that failed leaves what it had begun with.
            places = (record.parent for record in cells.glob("*/task.json"))
            files = (path for place in places for path in place.rglob("*") if path.is_file())
            return {path: path.stat().st_mtime_ns for path in files}

        before = stamps()
        again = Comparison(comparison.folder, comparison.grid)
        again.run()
        repeated = write_results(again, "shadow-defense compare tiny.yaml")
        broken = {comparison.trial("convnet", seed).trainings["noise-broken"] for seed in (0, 1)}
        changed = {path.parent for path, stamp in stamps().items() if before.get(path) != stamp}
        assert changed <= {comparison.store.place(training) for training in broken}
        assert repeated.tables == results.tables


@pytest.mark.slow
def test_what_a_run_has_trained_and_attacked_a_comparison_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder beside it: only what the run lacks, the control, is computed."""
    made = grid(seeds=[0], defenses={name: TINY["defenses"][name] for name in ("fedavg", "noise")}, workers=0)
    config = made.run_config("convnet", 0)
    run = Run.create(tmp_path / "run", config)
    for stage in STAGES.values():
        stage(run, Progress())
    computed: list[Task] = []
    for kind in (Pretraining, Training, Attacking, Scoring):
        monkeypatch.setattr(kind, "compute", noted(kind.compute, computed))
    monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
    comparison = Comparison(tmp_path / "comparison", made)
    comparison.run()
    # What a score was made from is taken over with it: the page shows it, and follows every number to it.
    results = write_results(comparison, "shadow-defense compare tiny.yaml")
    kept = {path.parent.name for path in (comparison.folder / "store").glob("*/task.json")}
    assert {f"{task.kind}-{task.key}" for task in results.tasks} <= kept
    assert "<img" in (comparison.folder / "comparison.html").read_text()
    assert comparison.failures == {}
    assert {type(task) for task in computed} == {Attacking, Scoring}
    assert all(task.randomised for task in computed if isinstance(task, Attacking))
    assert {task.arm for task in computed if isinstance(task, Scoring)} == {RANDOM_UPDATE}


def noted(compute: Callable[..., None], computed: list[Task]) -> Callable[..., None]:
    def noting(task: Task, store: Store, progress: Progress) -> None:
        computed.append(task)
        compute(task, store, progress)

    return noting

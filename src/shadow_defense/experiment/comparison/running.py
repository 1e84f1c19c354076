"""A comparison from its grid to its results: generators, costs, trainings, attacks, each cell once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, Cell, GridRun, all_jobs, grid_run
from shadow_defense.experiment.comparison.computing import attack_cell, pretrain_cell, train_cell
from shadow_defense.experiment.comparison.forecast import check_disk, duration_text, training_bytes
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.comparison.isolation import run_isolated
from shadow_defense.experiment.comparison.measuring import Measurements
from shadow_defense.experiment.training import build_defense, check_run, load_run_generator, needs_generator
from shadow_defense.experiment.workers import Call, worker_count
from shadow_defense.files import is_empty, make_private_folder, write_text
from shadow_defense.progress import Progress, Task

MILLISECONDS = 1000

Waiting = Mapping[Path, list[Cell]]
"""Cells to be computed, by where they lie: those that nothing tells apart share a place, and are computed once."""


class Comparison:
    """A grid and the folder of its cells.

    Attributes:
        measurements: what defenses and attacks cost.
        failures: the one-line error of each cell that failed in this run of the command.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        if folder.is_file():
            raise RunError(f"{folder} is a file: choose another folder with --out")
        try:
            if folder.is_dir() and not is_empty(folder) and not (folder / "grid.yaml").exists():
                raise RunError(f"{folder} exists and holds files that no comparison wrote: choose another with --out")
        except OSError as error:
            raise _unusable(folder, error) from error
        self.folder, self.grid = folder, grid
        self.measurements = Measurements(folder, grid, self.of)
        self.failures: dict[str, str] = {}
        self._runs: dict[tuple[str, int], GridRun] = {}

    def run(self, progress: Progress | None = None) -> None:
        """Compute every cell that is not there yet; what a kill interrupts goes on from its last whole round.

        Raises:
            ShadowDefenseError: before any training, for what no cell could be computed with.
        """
        progress = progress or Progress()
        self.check()
        write_text(self.folder / "grid.yaml", yaml.safe_dump(self.grid.model_dump(mode="json"), sort_keys=False))
        self._pretrain(progress)
        for model in self.grid.models:
            self._check_arms(self.of(model, self.grid.seeds[0]), model, generator=True)
        waiting = self._waiting()
        attacks = {(cell.model, cell.job.attack): None for cells in waiting.values() for cell in cells if cell.job}
        self.measurements.measure(list(attacks), progress)
        self.failures.update(self.measurements.failures)
        if waiting:
            self._check_disk(waiting)
            self._train_and_attack(waiting, progress)

    def runs(self) -> Iterator[tuple[str, int, GridRun]]:
        for seed in self.grid.seeds:
            for model in self.grid.models:
                yield model, seed, self.of(model, seed)

    def of(self, model: str, seed: int) -> GridRun:
        """The run of one model and one seed."""
        if (model, seed) not in self._runs:
            self._runs[model, seed] = grid_run(self.folder, self.grid, model, seed)
        return self._runs[model, seed]

    def cells(self) -> list[Cell]:
        """Every training, then every attack; seed by seed, so that a stopped comparison has whole seeds."""
        return [
            *(Cell(model, seed, arm) for model, seed, run in self.runs() for arm in run.config.arms),
            *(Cell(model, seed, job.arm, job) for model, seed, run in self.runs() for job in all_jobs(run)),
        ]

    def place(self, cell: Cell) -> Path:
        """The folder of a training, or the file of an attack."""
        run = self.of(cell.model, cell.seed)
        if cell.job is None:
            return run.arm_folder(cell.arm)
        return run.reconstruction_path(cell.arm, cell.job.attack, cell.job.round, cell.job.client)

    def is_done(self, cell: Cell) -> bool:
        if cell.job is None:
            return bool(self.of(cell.model, cell.seed).history(cell.arm))
        return self.place(cell).exists()

    def check(self) -> None:
        """Raise what would stop a cell before hours of others; defenses that need a generator are checked later."""
        try:
            make_private_folder(self.folder)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        for model in self.grid.models:
            run = self.of(model, self.grid.seeds[0])
            check_run(run)
            self._check_arms(run, model, generator=False)
        self._check_disk(self._waiting())

    def _check_arms(self, run: GridRun, model: str, *, generator: bool) -> None:
        found = load_run_generator(run) if generator else None
        for arm, settings in run.config.arms.items():
            if settings.kind().needs_generator is generator:
                try:
                    defense = build_defense(run, arm, found, run.dataset.clients[0].name)
                    defense.check_model(run.new_model(arm))
                except ShadowDefenseError as error:
                    raise type(error)(f"{arm} with {model}: {error}{self._without(model, arm)}") from error

    def _without(self, model: str, arm: str) -> str:
        """How a pair is left out; nothing for what all others are compared with, and for ablations."""
        point = self.grid.points().get(arm)
        if point is None or point.family == next(iter(self.grid.defenses)):
            return ""
        return f"; or leave the pair out: leave_out: [{{model: {model}, defense: {point.family}, reason: ...}}]"

    def _pretrain(self, progress: Progress) -> None:
        missing = {
            run.generator_key: (model, seed)
            for model, seed, run in self.runs()
            if needs_generator(run) and not run.generator_path.exists()
        }
        failed = run_isolated(
            {key: Call(pretrain_cell, (self.folder, self.grid, *where)) for key, where in missing.items()},
            traces=self.folder / "traces",
            workers=self.grid.workers,
            threads=self.grid.threads,
            name=f"pre-training {len(missing)} shadow generators, steps",
            total_steps=sum(self.of(*where).config.generator.steps for where in missing.values()),
            progress=progress,
        )
        for key, error in failed.items():
            model, seed = missing[key]
            raise RunError(f"the shadow generator for {model}, seed {seed}, could not be trained: {error}")

    def _waiting(self) -> Waiting:
        waiting: dict[Path, list[Cell]] = {}
        for cell in self.cells():
            if not self.is_done(cell):
                waiting.setdefault(self.place(cell), []).append(cell)
        return waiting

    def _check_disk(self, waiting: Waiting) -> None:
        sizes: dict[tuple[str, str], int] = {}
        needed = 0
        for cell, *_ in waiting.values():
            if cell.job is None:
                if (cell.model, cell.arm) not in sizes:
                    sizes[cell.model, cell.arm] = self._bytes(cell)
                needed += sizes[cell.model, cell.arm]
        check_disk(self.folder, needed)

    def _bytes(self, cell: Cell) -> int:
        run = self.of(cell.model, cell.seed)
        # Before pre-training nothing is known of its size; the disk is looked at again after it.
        generator = run.config.arms[cell.arm].kind().needs_generator and run.generator_path.exists()
        size = run.generator_path.stat().st_size if generator else 0
        return training_bytes(run, run.new_model(cell.arm), size)

    def _train_and_attack(self, waiting: Waiting, progress: Progress) -> None:
        seconds = {place: self.measurements.seconds(cells[0]) for place, cells in waiting.items()}
        workers = worker_count(self.grid.workers, len(waiting))
        name = f"{len(waiting)} cells, {duration_text(sum(seconds.values()) / workers)} on {workers} workers; seconds"
        task = progress.start(name, round(sum(seconds.values())))
        shared = _Shared(task)
        calls = {place: self._call(cells[0], seconds[place]) for place, cells in waiting.items()}
        trainings = {place: call for place, call in calls.items() if waiting[place][0].job is None}
        broken = self._isolated(trainings, waiting, shared)
        attacks = {
            place: call
            for place, call in calls.items()
            if place not in trainings and self._training_of(waiting[place][0]) not in broken
        }
        self._isolated(attacks, waiting, shared)
        task.finish()

    def _training_of(self, cell: Cell) -> Path:
        """Where the training lies whose update an attack is made on."""
        run = self.of(cell.model, cell.seed)
        return run.arm_folder(run.reference if cell.arm == RANDOM_UPDATE else cell.arm)

    def _isolated(self, calls: Mapping[Path, Call], waiting: Waiting, progress: Progress) -> set[Path]:
        """Run the calls; returns the places of those that failed."""
        failed = run_isolated(
            calls,
            traces=self.folder / "traces",
            workers=self.grid.workers,
            threads=self.grid.threads,
            name="",
            total_steps=0,
            progress=progress,
        )
        self.failures.update({str(cell): error for place, error in failed.items() for cell in waiting[place]})
        return set(failed)

    def _call(self, cell: Cell, seconds: float) -> Call:
        config = self.of(cell.model, cell.seed).config
        where = (self.folder, self.grid, cell.model, cell.seed)
        weight = MILLISECONDS * seconds
        if cell.job is None:
            return Call(train_cell, (*where, cell.arm, round(weight / config.training.rounds)))
        return Call(attack_cell, (*where, cell.job, round(weight / config.attacks[cell.job.attack].build().steps())))


def _unusable(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder} cannot be used: {error.strerror or error}; choose another folder with --out")


class _Shared(Progress):
    """One bar in seconds for several batches of work that is counted in milliseconds."""

    def __init__(self, task: Task) -> None:
        self._task, self._rest = task, 0

    def start(self, name: str, total: int) -> Task:
        shared = self

        class Part(Task):
            def advance(self, steps: int = 1, note: str = "") -> None:
                shared._advance(steps, note)

        return Part()

    def _advance(self, milliseconds: int, note: str) -> None:
        whole, self._rest = divmod(self._rest + milliseconds, MILLISECONDS)
        self._task.advance(whole, note)

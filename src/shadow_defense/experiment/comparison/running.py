"""A comparison from its grid to its results: generators, costs, trainings, attacks, each cell once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from shadow_defense.attacks.observation import randomised
from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.experiment.attacking import Job, attack_seed, build_observation, jobs, reconstruct
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, GridRun, grid_run
from shadow_defense.experiment.comparison.costs import Cost, cost_from, in_own_process, measure_attack, measure_cost
from shadow_defense.experiment.comparison.forecast import (
    attack_seconds,
    check_disk,
    duration_text,
    training_bytes,
    training_seconds,
)
from shadow_defense.experiment.comparison.grid import Grid
from shadow_defense.experiment.comparison.isolation import run_isolated
from shadow_defense.experiment.training import (
    build_defense,
    check_run,
    load_run_generator,
    needs_generator,
    pretrain_stage,
    rounds_done,
    train_arm,
)
from shadow_defense.experiment.workers import Call, CountingProgress, CountingTask, worker_count
from shadow_defense.federated.rounds import TRAINING
from shadow_defense.files import read_json, write_json, write_text
from shadow_defense.generators.training import PRETRAINING
from shadow_defense.progress import Progress, Task

MILLISECONDS = 1000


@dataclass(frozen=True)
class Cell:
    """One training (``job`` is None) or one attack of one model and seed."""

    model: str
    seed: int
    arm: str
    job: Job | None = None

    def __str__(self) -> str:
        what = "training" if self.job is None else f"{self.job.attack}, round {self.job.round + 1}, {self.job.client}"
        return f"{self.model}, seed {self.seed}, {self.arm}: {what}"


class Comparison:
    """A grid and the folder of its cells.

    Attributes:
        costs: by model and arm; missing where it could not be measured.
        failures: the one-line error of each cell that failed in this run of the command.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        if folder.is_file():
            raise RunError(f"{folder} is a file: choose another folder with --out")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "grid.yaml").exists():
            raise RunError(f"{folder} exists and holds files that no comparison wrote: choose another with --out")
        self.folder, self.grid = folder, grid
        self.costs: dict[tuple[str, str], Cost] = {}
        self.attack_costs: dict[tuple[str, str], float] = {}
        self.failures: dict[str, str] = {}

    def run(self, progress: Progress | None = None) -> None:
        """Compute every cell that is not there yet; what a kill interrupts goes on from its last whole round.

        Raises:
            ShadowDefenseError: before any training, for what no cell could be computed with.
        """
        progress = progress or Progress()
        self.check()
        write_text(self.folder / "grid.yaml", yaml.safe_dump(self.grid.model_dump(mode="json"), sort_keys=False))
        self._pretrain(progress)
        self._check_models()
        self._measure(progress)
        self._train_and_attack(progress)

    def runs(self) -> Iterator[tuple[str, int, GridRun]]:
        for seed in self.grid.seeds:
            for model in self.grid.models:
                yield model, seed, self.of(model, seed)

    def of(self, model: str, seed: int) -> GridRun:
        return grid_run(self.folder, self.grid, model, seed)

    def cells(self) -> list[Cell]:
        """Every training, then every attack; seed by seed, so that a stopped comparison has whole seeds."""
        return [
            *(Cell(model, seed, arm) for model, seed, run in self.runs() for arm in run.config.arms),
            *(Cell(model, seed, job.arm, job) for model, seed, run in self.runs() for job in all_jobs(run)),
        ]

    def is_done(self, cell: Cell) -> bool:
        run = self.of(cell.model, cell.seed)
        if cell.job is None:
            return rounds_done(run, cell.arm) >= run.config.training.rounds
        return run.reconstruction_path(cell.arm, cell.job.attack, cell.job.round, cell.job.client).exists()

    def check(self) -> None:
        """Raise what would stop a cell before hours of others; defenses that need a generator are checked later."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for model in self.grid.models:
            run = self.of(model, self.grid.seeds[0])
            check_run(run)
            self._check_arms(run, model, generator=False)

    def _check_models(self) -> None:
        for model in self.grid.models:
            self._check_arms(self.of(model, self.grid.seeds[0]), model, generator=True)

    def _check_arms(self, run: GridRun, model: str, *, generator: bool) -> None:
        found = load_run_generator(run) if generator else None
        for arm, settings in run.config.arms.items():
            if settings.kind().needs_generator is generator:
                try:
                    defense = build_defense(run, arm, found, run.dataset.clients[0].name)
                    defense.check_model(run.new_model(arm))
                except ShadowDefenseError as error:
                    raise type(error)(
                        f"{arm} with {model}: {error}; or leave the pair out: "
                        f"leave_out: [{{model: {model}, defense: {arm}, reason: ...}}]"
                    ) from error

    def _pretrain(self, progress: Progress) -> None:
        missing = {
            run.generator_key: (model, seed)
            for model, seed, run in self.runs()
            if needs_generator(run) and not run.generator_path.exists()
        }
        failed = run_isolated(
            {key: Call(_pretrain_cell, (self.folder, self.grid, *where)) for key, where in missing.items()},
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

    def _measure(self, progress: Progress) -> None:
        seed = self.grid.seeds[0]
        first: dict[str, str] = {}
        for name, point in self.grid.points().items():
            first.setdefault(point.family, name)
        wanted = [
            (model, arm)
            for model in self.grid.models
            for arm in self.of(model, seed).config.arms
            if arm in first.values() or self.grid.ablations == arm
        ]
        task = progress.start("measuring what defenses and attacks cost", len(wanted) + len(self.grid.models))
        for model, arm in wanted:
            run = self.of(model, seed)
            path = run.cell("cost", run.cost_key(arm)).with_suffix(".json")
            try:
                if not path.exists():
                    cost = in_own_process(measure_cost, self.folder, self.grid, model, seed, arm)
                    write_json(path, asdict(cost))
                self.costs[model, arm] = cost_from(read_json(path))
            except Exception as error:
                self.failures[f"{model}, {arm}: cost"] = " ".join(str(error).split()) or type(error).__name__
            task.advance()
        for model in self.grid.models:
            for attack in self.grid.attacks:
                if any(cell.job and cell.job.attack == attack for cell in self._waiting() if cell.model == model):
                    self.attack_costs[model, attack] = in_own_process(
                        measure_attack, self.folder, self.grid, model, seed, attack
                    )
            task.advance()
        task.finish()

    def cost_of(self, model: str, arm: str) -> Cost | None:
        """Of an arm, measured at the first strength of its family; ablations are taken as their whole."""
        points = self.grid.points()
        if arm not in points:
            return self.cost_of(model, str(self.grid.ablations))
        family = points[arm].family
        return next(
            (
                self.costs[model, name]
                for name, point in points.items()
                if point.family == family and (model, name) in self.costs
            ),
            None,
        )

    def _waiting(self) -> list[Cell]:
        return [cell for cell in self.cells() if not self.is_done(cell)]

    def forecast(self, cell: Cell) -> float:
        """Seconds of one process."""
        run = self.of(cell.model, cell.seed)
        if cell.job is not None:
            return attack_seconds(run, cell.job, self.attack_costs[cell.model, cell.job.attack])
        cost = self.cost_of(cell.model, cell.arm) or self.cost_of(cell.model, run.reference)
        # A cost that could not be measured: some number has to stand in the sum.
        return 60.0 if cost is None else training_seconds(run, cost)

    def _train_and_attack(self, progress: Progress) -> None:
        waiting = self._waiting()
        if not waiting:
            return
        needed = sum(self._bytes(cell) for cell in waiting if cell.job is None)
        check_disk(self.folder, needed)
        seconds = {cell: self.forecast(cell) for cell in waiting}
        workers = worker_count(self.grid.workers, len(waiting))
        name = f"{len(waiting)} cells, {duration_text(sum(seconds.values()) / workers)} on {workers} workers; seconds"
        task = progress.start(name, round(sum(seconds.values())))
        shared = _Shared(task)
        trainings = {cell: call for cell, call in self._calls(waiting, seconds).items() if cell.job is None}
        failed = self._isolated(trainings, shared)
        broken = {(cell.model, cell.seed, cell.arm) for cell in failed}
        attacks = {}
        for cell, call in self._calls(waiting, seconds).items():
            if cell.job is not None:
                source = self.of(cell.model, cell.seed).reference if cell.arm == RANDOM_UPDATE else cell.arm
                if (cell.model, cell.seed, source) not in broken:
                    attacks[cell] = call
        self._isolated(attacks, shared)
        task.finish()

    def _isolated(self, calls: dict[Cell, Call], progress: Progress) -> dict[Cell, str]:
        failed = run_isolated(
            calls,
            traces=self.folder / "traces",
            workers=self.grid.workers,
            threads=self.grid.threads,
            name="",
            total_steps=0,
            progress=progress,
        )
        self.failures.update({str(cell): error for cell, error in failed.items()})
        return failed

    def _calls(self, cells: list[Cell], seconds: dict[Cell, float]) -> dict[Cell, Call]:
        calls = {}
        for cell in cells:
            run = self.of(cell.model, cell.seed)
            place = (self.folder, self.grid, cell.model, cell.seed)
            weight = MILLISECONDS * seconds[cell]
            if cell.job is None:
                calls[cell] = Call(_train_cell, (*place, cell.arm, round(weight / run.config.training.rounds)))
            else:
                steps = run.config.attacks[cell.job.attack].build().steps()
                calls[cell] = Call(_attack_cell, (*place, cell.job, round(weight / steps)))
        return calls

    def _bytes(self, cell: Cell) -> int:
        run = self.of(cell.model, cell.seed)
        generator = run.config.arms[cell.arm].kind().needs_generator
        size = run.generator_path.stat().st_size if generator else 0
        return training_bytes(run, run.new_model(cell.arm), size)


def all_jobs(run: GridRun) -> list[Job]:
    """The attacks on every arm, then those on the random updates; an ablation is attacked like any arm."""
    wanted = jobs(run)
    control = [replace(job, arm=RANDOM_UPDATE) for job in wanted if job.arm == run.reference]
    return [*wanted, *control]


def _pretrain_cell(folder: Path, grid: Grid, model: str, seed: int) -> None:
    pretrain_stage(grid_run(folder, grid, model, seed), CountingProgress(PRETRAINING))


def _train_cell(folder: Path, grid: Grid, model: str, seed: int, arm: str, weight: int) -> None:
    train_arm(grid_run(folder, grid, model, seed), arm, CountingProgress(TRAINING, weight))


def _attack_cell(folder: Path, grid: Grid, model: str, seed: int, job: Job, weight: int) -> None:
    run = grid_run(folder, grid, model, seed)
    source = run.reference if job.arm == RANDOM_UPDATE else job.arm
    observation = build_observation(run, replace(job, arm=source), run.new_model(source))
    if job.arm == RANDOM_UPDATE:
        observation = randomised(observation, attack_seed(run, job))
    found = reconstruct(run.config.attacks[job.attack], observation, attack_seed(run, job), CountingTask(weight))
    found.save(run.reconstruction_path(job.arm, job.attack, job.round, job.client))


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

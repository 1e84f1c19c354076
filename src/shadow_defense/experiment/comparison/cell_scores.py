"""The scores of every finished attack of a comparison, each computed once and kept beside its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.errors import RunError, ShadowDefenseError
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, Cell, GridRun, all_jobs
from shadow_defense.experiment.comparison.running import Comparison
from shadow_defense.experiment.scoring import MEAN_IMAGE, Foreground, Score, score_rows
from shadow_defense.files import read_json, write_json
from shadow_defense.metrics.lpips import load_lpips
from shadow_defense.progress import Progress


def score_cells(comparison: Comparison, progress: Progress | None = None) -> dict[str, list[Score]]:
    """The scores of every finished attack and of the mean image, by model; clients are named with their seed.

    What cannot be scored joins the comparison's failures.
    """
    scores: dict[str, list[Score]] = {model: [] for model in comparison.grid.models}
    work = list(comparison.runs())
    task = (progress or Progress()).start("scoring reconstructions", len(work))
    for model, seed, run in work:
        if run.history(run.reference):
            scorer = _Scorer(run)
            for job in all_jobs(run):
                if run.reconstruction_path(job.arm, job.attack, job.round, job.client).exists():
                    try:
                        found = scorer.scores(job)
                    except ShadowDefenseError as error:
                        cell = Cell(model, seed, job.arm, job)
                        comparison.failures[str(cell)] = " ".join(str(error).split())
                    else:
                        scores[model] += [replace(each, client=seeded(seed, each.client)) for each in found]
        task.advance()
    task.finish()
    return scores


def seeded(seed: int, client: str) -> str:
    """A client's name among those of all seeds: another seed's client of the same name has other images.

    >>> seeded(2, "client-1")
    'seed 2, client-1'
    """
    return f"seed {seed}, {client}"


def load_cell(run: GridRun, job: Job) -> Reconstruction:
    """The stored result of one attack. Raises :class:`RunError` where it is damaged."""
    path = run.reconstruction_path(job.arm, job.attack, job.round, job.client)
    try:
        return Reconstruction.load(path)
    except RunError as error:
        raise RunError(f"{path} is damaged: delete it, and the same command computes it again") from error


class _Scorer:
    """Scores of one model and seed; masks and LPIPS are loaded only where a score is missing."""

    def __init__(self, run: GridRun) -> None:
        self._run = run
        self._foreground: Foreground | None = None
        self._masks: dict[str, Any] = {}
        self._lpips: Any = None

    def scores(self, job: Job) -> list[Score]:
        """Of one attack, and with the random update's those of the mean image."""
        path = self._run.cell("score", self._run.score_key(job)).with_suffix(".json")
        record = _stored(path)
        if record is None or (job.arm == RANDOM_UPDATE and "mean image" not in record):
            record = self._record(job)
            write_json(path, record)
        rows, notes = tuple(record["rows"]), tuple(record["notes"])
        found = [Score(job.arm, job.attack, job.round, job.client, rows, None, record["seconds"], notes)]
        if job.arm == RANDOM_UPDATE:
            found.append(Score(MEAN_IMAGE, job.attack, job.round, job.client, tuple(record["mean image"])))
        return found

    def _record(self, job: Job) -> dict[str, Any]:
        rebuilt = load_cell(self._run, job)
        record: dict[str, Any] = {"rows": self._rows(job, rebuilt.images), "seconds": rebuilt.seconds}
        if job.arm == RANDOM_UPDATE:
            blank = self._run.mean_image.expand(len(rebuilt.images), -1, -1, -1)
            record["mean image"] = self._rows(job, blank)
        return {**record, "notes": list(rebuilt.notes)}

    def _rows(self, job: Job, images: Any) -> list[dict[str, Any]]:
        settings, truths = self._run.config.metrics, self._run.client(job.client).train
        if self._foreground is None:
            self._lpips = load_lpips(settings.lpips, settings.lpips_weights) if settings.lpips else None
            self._foreground = Foreground(self._run)
        if job.client not in self._masks:
            self._masks[job.client] = self._foreground.masks(truths)
        return list(score_rows(images, truths, self._masks[job.client], self._lpips))


def _stored(path: Path) -> dict[str, Any] | None:
    """A score's file; None where there is none, or a damaged one, which is computed again."""
    try:
        record = read_json(path)
    except RunError:
        return None
    return record if isinstance(record, dict) and {"rows", "notes", "seconds"} <= record.keys() else None

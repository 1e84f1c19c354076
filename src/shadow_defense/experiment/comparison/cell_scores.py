"""The scores of every finished attack of a comparison, each computed once and kept beside its images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.experiment.attacking import Job
from shadow_defense.experiment.comparison.cells import RANDOM_UPDATE, GridRun
from shadow_defense.experiment.comparison.running import Comparison, all_jobs
from shadow_defense.experiment.scoring import MEAN_IMAGE, Foreground, Score, score_rows
from shadow_defense.files import read_json, write_json
from shadow_defense.metrics.lpips import load_lpips
from shadow_defense.progress import Progress


def score_cells(comparison: Comparison, progress: Progress | None = None) -> dict[str, list[Score]]:
    """The scores of every finished attack and of the mean image, by model; clients are named with their seed."""
    scores: dict[str, list[Score]] = {model: [] for model in comparison.grid.models}
    work = list(comparison.runs())
    task = (progress or Progress()).start("scoring reconstructions", len(work))
    for model, seed, run in work:
        if (run.arm_folder(run.reference) / "history.json").exists():
            scores[model] += [replace(score, client=f"seed {seed}, {score.client}") for score in _scores_of(run)]
        task.advance()
    task.finish()
    return scores


def _scores_of(run: GridRun) -> list[Score]:
    done = [
        job for job in all_jobs(run) if run.reconstruction_path(job.arm, job.attack, job.round, job.client).exists()
    ]
    settings = run.config.metrics
    # Loaded only where a score is missing.
    tools: dict[str, Any] = {}

    def rows(job: Job, images: Any) -> list[dict[str, Any]]:
        if not tools:
            foreground = Foreground(run)
            clients = {each.client for each in done}
            tools["masks"] = {name: foreground.masks(run.client(name).train) for name in clients}
            tools["lpips"] = load_lpips(settings.lpips, settings.lpips_weights) if settings.lpips else None
        truths = run.client(job.client).train
        return list(score_rows(images, truths, tools["masks"][job.client], tools["lpips"]))

    scores = []
    for job in done:
        path = run.cell("score", run.score_key(job)).with_suffix(".json")
        if not path.exists():
            found = Reconstruction.load(run.reconstruction_path(job.arm, job.attack, job.round, job.client))
            record: dict[str, Any] = {"rows": rows(job, found.images), "loss": None, "seconds": found.seconds}
            if job.arm == RANDOM_UPDATE:
                record["mean image"] = rows(job, run.mean_image.expand(len(found.images), -1, -1, -1))
            write_json(path, {**record, "notes": list(found.notes)})
        record = read_json(path)
        notes = tuple(record["notes"])
        scores.append(
            Score(job.arm, job.attack, job.round, job.client, tuple(record["rows"]), None, record["seconds"], notes)
        )
        if job.arm == RANDOM_UPDATE:
            scores.append(Score(MEAN_IMAGE, job.attack, job.round, job.client, tuple(record["mean image"])))
    return scores

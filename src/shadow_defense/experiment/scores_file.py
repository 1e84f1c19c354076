"""``scores.json``, image by image, as a run wrote it: another's, or another shape, is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from shadow_defense.errors import RunError, shown
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.files import read_json, write_json
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.records.scores import MEAN_IMAGE


def write_scores(run: Run, scores: Sequence[Score]) -> None:
    write_json(_path(run), TypeAdapter(list[Score]).dump_python(list(scores), mode="json"))


def read_scores(run: Run, hint: str) -> list[Score]:
    """The scores of every attacked update. Raises :class:`RunError`, ending in ``hint``, for another run's."""
    path = _path(run)
    scores = read_record(list[Score], read_json(path, hint), str(path), hint)
    first_arm = {(score.attack, score.round, score.client) for score in scores if score.arm == run.reference}
    try:
        for score in scores:
            _check(run, score)
            if (score.attack, score.round, score.client) not in first_arm:
                raise ValueError(f"'{run.reference}', which '{shown(score.arm)}' is compared with, was not scored")
    except ValueError as error:
        raise RunError(f"cannot read {path}: {error}; {hint}") from error
    return scores


def _path(run: Run) -> Path:
    return run.folder / "scores.json"


def _check(run: Run, score: Score) -> None:
    """Raise ``ValueError`` for what this run cannot have scored."""
    clients = {client.name: client for client in (*run.dataset.clients, run.images.all_clients)}
    if score.client not in clients or score.attack not in run.config.attacks:
        raise ValueError(f"the run has no attack '{shown(score.attack)}' on client '{shown(score.client)}'")
    if score.arm not in (*run.config.arms, MEAN_IMAGE):
        raise ValueError(f"the run has no arm '{shown(score.arm)}'")
    for row in score.rows:
        if row.sample_id is not None and row.sample_id not in clients[score.client].train.sample_ids:
            raise ValueError(f"client '{shown(score.client)}' has no image '{shown(row.sample_id)}'")
        if not 0 <= row.reconstruction < len(score.rows):
            raise ValueError(f"there is no reconstruction {row.reconstruction}")

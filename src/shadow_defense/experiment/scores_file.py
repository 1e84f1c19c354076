"""``scores.json``, image by image, as a run wrote it: another's, or another shape, is refused."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from shadow_defense.errors import RunError, shown
from shadow_defense.experiment.analysis import COLUMNS
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.files import read_json
from shadow_defense.report.records.scores import MEAN_IMAGE

SCORES = TypeAdapter(list[Score])
MEASURED = TypeAdapter(dict[str, float | None])


def read_scores(run: Run, mend: str) -> list[dict[str, Any]]:
    """The scores of every attacked update. Raises :class:`RunError`, ending in ``mend``, for another run's."""
    path = run.folder / "scores.json"
    scores = read_json(path, mend)
    try:
        found = SCORES.validate_python(scores)
        for score in found:
            _check(run, score)
        first_arm = {(score.attack, score.round, score.client) for score in found if score.arm == run.reference}
        for score in found:
            if (score.attack, score.round, score.client) not in first_arm:
                raise ValueError(f"'{run.reference}', which '{shown(score.arm)}' is compared with, was not scored")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = shown(".".join(map(str, first["loc"])))
        raise RunError(f"cannot read {path}: {place}: {first['msg'].lower()}; {mend}") from error
    except KeyError as error:
        raise RunError(f"cannot read {path}: a row has no {shown(error)}; {mend}") from error
    except ValueError as error:
        raise RunError(f"cannot read {path}: {error}; {mend}") from error
    return scores


def _check(run: Run, score: Score) -> None:
    """Raise ``ValueError`` or ``KeyError`` for what this run cannot have scored."""
    clients = {client.name: client for client in (*run.dataset.clients, run.images.all_clients)}
    if score.client not in clients or score.attack not in run.config.attacks:
        raise ValueError(f"the run has no attack '{shown(score.attack)}' on client '{shown(score.client)}'")
    if score.arm not in (*run.config.arms, MEAN_IMAGE):
        raise ValueError(f"the run has no arm '{shown(score.arm)}'")
    samples = clients[score.client].train.sample_ids
    for row in score.rows:
        if row["sample_id"] is not None and row["sample_id"] not in samples:
            raise ValueError(f"client '{shown(score.client)}' has no image '{shown(row['sample_id'])}'")
        if not 0 <= int(row.get("reconstruction", 0)) < max(len(score.rows), 1):
            raise ValueError(f"there is no reconstruction {shown(row['reconstruction'])}")
        MEASURED.validate_python({column: row[column] for column in COLUMNS})

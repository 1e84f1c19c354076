"""The scores of a run, image by image, as a file; and its pictures: what was rebuilt, and where the noise went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.errors import RunError, shown
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.federated.rounds import read_explanations
from shadow_defense.files import read_json, write_json
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.records.run import ArmPictures, Exhibit
from shadow_defense.report.records.scores import MEAN_IMAGE

MOST_EXHIBITS = 24
"""More pictures would make the page heavy without saying more."""


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


def collect_exhibits(run: Run, scores: Sequence[Score]) -> tuple[Exhibit, ...]:
    """Up to :data:`MOST_EXHIBITS` images, taken in turn from every attacked update so that each shows some."""
    by_update: dict[tuple[str, int, str], dict[str, Score]] = {}
    for score in scores:
        by_update.setdefault((score.attack, score.round, score.client), {})[score.arm] = score
    each = max(1, MOST_EXHIBITS // max(len(by_update), 1))
    chosen = []
    for by_arm in by_update.values():
        first = by_arm[run.reference]
        # In the client's order: only its first images have explanations.
        samples = [sample for sample in run.client(first.client).train.sample_ids if sample in first.matched()]
        chosen += [(first, sample, by_arm) for sample in samples[:each]]
    return tuple(_exhibit(run, first, sample, by_arm) for first, sample, by_arm in chosen[:MOST_EXHIBITS])


def _exhibit(run: Run, first: Score, sample: str, by_arm: Mapping[str, Score]) -> Exhibit:
    attack, round, client = first.attack, first.round, first.client
    images = run.client(client).train
    index = images.sample_ids.index(sample)
    arms = {}
    for arm, score in by_arm.items():
        row = score.matched().get(sample)
        if arm != MEAN_IMAGE and row is not None:
            rebuilt = _reconstruction(run, Job(arm, attack, round, client)).images[row.reconstruction]
            arms[arm] = ArmPictures(rebuilt, row.metrics, **_explanation(run, arm, round, client, sample))
    return Exhibit(
        sample_id=sample,
        client=client,
        attack=attack,
        round=round + 1,
        class_name=run.dataset.class_names[int(images.labels[index])],
        original=images.unit_images()[index],
        arms=arms,
    )


def _reconstruction(run: Run, job: Job) -> Reconstruction:
    path = run.reconstruction_path(job)
    if not path.exists():
        raise RunError(f"{path} is missing: run `shadow-defense attack {run.folder}` first")
    return Reconstruction.load(path)


def _explanation(run: Run, arm: str, round: int, client: str, sample_id: str) -> dict[str, Tensor]:
    pictures = read_explanations(run.arm_folder(arm), round, client).get(sample_id, {})
    normalisation = run.dataset.normalisation
    explained: dict[str, Tensor] = {}
    for name in ("protected", "rebuilt"):
        if name in pictures:
            explained[name] = normalisation.invert(pictures[name].unsqueeze(0)).clamp(0, 1)[0]
    if "noise" in pictures:
        # Differences scale without the mean.
        explained["noise"] = pictures["noise"] * pictures["noise"].new_tensor(normalisation.std).view(-1, 1, 1)
    if "noise_map" in pictures:
        noise_map = pictures["noise_map"][0]
        explained["vulnerability"] = noise_map / noise_map.max().clamp_min(1e-12)
    if "cam" in pictures:
        explained["cam"] = pictures["cam"]
    return explained

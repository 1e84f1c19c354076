"""The scores of a run, image by image, as a file; and its pictures: what was rebuilt, and where the noise went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.data.dataset import ClientData
from shadow_defense.errors import RunError, shown
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.federated.training_folder import read_explanations
from shadow_defense.files import read_json, write_json
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.records.run import BEST_REMOVER, Explanation, Patient, RunRecord, Sight
from shadow_defense.report.records.scores import MEAN_IMAGE

MOST_PATIENTS = 24
"""More pictures would make the page heavy without saying more."""


def write_scores(run: Run, scores: Sequence[Score]) -> None:
    write_json(_path(run), TypeAdapter(list[Score]).dump_python(list(scores), mode="json"))


def read_scores(run: Run, hint: str) -> list[Score]:
    """The scores of every attacked update. Raises :class:`RunError`, ending in ``hint``, for another run's."""
    path = _path(run)
    scores = read_record(list[Score], read_json(path, hint), str(path), hint)
    first_arm = {(score.attack, score.round, score.client) for score in scores if score.arm == run.reference}
    first_arm |= {(BEST_REMOVER, score.round, score.client) for score in scores}
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
    if score.client not in clients or score.attack not in (*run.config.attacks, BEST_REMOVER):
        raise ValueError(f"the run has no attack '{shown(score.attack)}' on client '{shown(score.client)}'")
    if score.arm not in (*run.config.arms, MEAN_IMAGE):
        raise ValueError(f"the run has no arm '{shown(score.arm)}'")
    for row in score.rows:
        if row.sample_id is not None and row.sample_id not in clients[score.client].train.sample_ids:
            raise ValueError(f"client '{shown(score.client)}' has no image '{shown(row.sample_id)}'")
        if not 0 <= row.reconstruction < len(score.rows):
            raise ValueError(f"there is no reconstruction {row.reconstruction}")


def collect_patients(run: Run, record: RunRecord, scores: Sequence[Score]) -> tuple[Patient, ...]:
    """The images of which most is left in the arm that hides most, at most :data:`MOST_PATIENTS`, in clients' order."""
    left = record.closest(record.answer or run.reference)
    chosen = sorted(left.values(), key=lambda sight: sight.share, reverse=True)[:MOST_PATIENTS]
    kept = {(sight.client, sight.sample_id) for sight in chosen}
    indices = {
        (score.arm, score.attack, score.round + 1, score.client, sample): row.reconstruction
        for score in scores
        for sample, row in score.matched().items()
    }

    def rebuilt(sight: Sight) -> Tensor:
        images = _reconstruction(run, Job(sight.arm, sight.attack, sight.round - 1, sight.client)).images
        return images[indices[sight.arm, sight.attack, sight.round, sight.client, sight.sample_id]]

    seen: dict[tuple[str, str], list[Sight]] = {}
    for sight in record.sights:
        seen.setdefault((sight.client, sight.sample_id), []).append(sight)
    return tuple(
        _patient(run, client, index, {(each.arm, each.attack): rebuilt(each) for each in seen[client.name, sample]})
        for client in (*run.dataset.clients, *([run.images.all_clients] if run.shows_averages else []))
        for index, sample in enumerate(client.train.sample_ids)
        if (client.name, sample) in kept
    )


def _patient(run: Run, client: ClientData, index: int, rebuilt: Mapping[tuple[str, str], Tensor]) -> Patient:
    images, sample = client.train, client.train.sample_ids[index]
    rounds = sorted({round for attack in run.config.attacks for round in run.config.attacked_rounds(attack)})
    explained = {
        round + 1: {
            arm: explanation
            for arm in run.config.arms
            if (explanation := _explanation(run, arm, round, client.name, sample)) is not None
        }
        for round in rounds
    }
    return Patient(
        sample_id=sample,
        client=client.name,
        class_name=run.dataset.class_names[int(images.labels[index])],
        original=images.unit_images()[index],
        rebuilt=rebuilt,
        explained={round: arms for round, arms in explained.items() if arms},
    )


def _reconstruction(run: Run, job: Job) -> Reconstruction:
    path = run.reconstruction_path(job)
    if not path.exists():
        raise RunError(f"{path} is missing: run `shadow-defense attack {run.folder}` first")
    return Reconstruction.load(path)


def _explanation(run: Run, arm: str, round: int, client: str, sample_id: str) -> Explanation | None:
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
    return Explanation(**explained) if explained else None

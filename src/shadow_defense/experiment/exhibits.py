"""The pictures of a report: what was rebuilt, and where the noise went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.errors import RunError
from shadow_defense.experiment.analysis import COLUMNS
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.federated.rounds import explanation_name, round_folder, train_again
from shadow_defense.files import nest_tensors, read_tensors
from shadow_defense.report.records.run import ArmPictures, Exhibit
from shadow_defense.report.records.scores import MEAN_IMAGE
from shadow_defense.shadow.sample_store import unpack_samples

MOST_EXHIBITS = 24
"""More pictures would make the page heavy without saying more."""


def collect_exhibits(run: Run, scores: Sequence[Mapping[str, Any]]) -> tuple[Exhibit, ...]:
    """Up to :data:`MOST_EXHIBITS` images, taken in turn from every attacked update so that each shows some."""
    arms = list(run.config.arms)
    by_update: dict[tuple[str, int, str], dict[str, Mapping[str, Any]]] = {}
    for score in scores:
        key = (score["attack"], score["round"], score["client"])
        by_update.setdefault(key, {})[score["arm"]] = score
    each = max(1, MOST_EXHIBITS // max(len(by_update), 1))
    exhibits: list[Exhibit] = []
    for (attack, round, client), by_arm in by_update.items():
        for row in _first_rows(run, client, by_arm[arms[0]]["rows"], each):
            if len(exhibits) < MOST_EXHIBITS:
                exhibits.append(_exhibit(run, attack, round, client, row["sample_id"], by_arm))
    return tuple(exhibits)


def _first_rows(run: Run, client: str, rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    # In the client's order: only its first images have explanations.
    position = {sample: index for index, sample in enumerate(run.client(client).train.sample_ids)}
    matched = [row for row in rows if row["sample_id"] is not None]
    return sorted(matched, key=lambda row: position[row["sample_id"]])[:count]


def _exhibit(
    run: Run, attack: str, round: int, client: str, sample_id: str, by_arm: Mapping[str, Mapping[str, Any]]
) -> Exhibit:
    data = run.dataset
    images = run.client(client).train
    index = images.sample_ids.index(sample_id)
    arms = {}
    for arm, score in by_arm.items():
        if arm == MEAN_IMAGE:
            continue
        row = next((row for row in score["rows"] if row["sample_id"] == sample_id), None)
        if row is not None:
            rebuilt = _reconstruction(run, Job(arm, attack, round, client)).images[row["reconstruction"]]
            measured = {column: row[column] for column in COLUMNS}
            arms[arm] = ArmPictures(rebuilt, measured, **_explanation(run, arm, round, client, sample_id))
    return Exhibit(
        sample_id=sample_id,
        client=client,
        attack=attack,
        round=round + 1,
        class_name=data.class_names[int(images.labels[index])],
        original=images.unit_images()[index],
        arms=arms,
    )


def _reconstruction(run: Run, job: Job) -> Reconstruction:
    path = run.reconstruction_path(job)
    if not path.exists():
        raise RunError(f"{path} is missing: run `shadow-defense attack {run.folder}` first")
    return Reconstruction.load(path)


def _explanation(run: Run, arm: str, round: int, client: str, sample_id: str) -> dict[str, Tensor]:
    path = round_folder(run.arm_folder(arm), round) / explanation_name(client)
    if not path.exists():
        return {}
    tensors, _ = read_tensors(path, train_again(run.arm_folder(arm)))
    kept = {name: unpack_samples(packed) for name, packed in nest_tensors(tensors).items()}
    pictures = {name: samples[sample_id] for name, samples in kept.items() if sample_id in samples}
    normalisation = run.dataset.normalisation
    shown: dict[str, Tensor] = {}
    for name in ("protected", "rebuilt"):
        if name in pictures:
            shown[name] = normalisation.invert(pictures[name].unsqueeze(0)).clamp(0, 1)[0]
    if "noise" in pictures:
        # Differences scale without the mean.
        shown["noise"] = pictures["noise"] * pictures["noise"].new_tensor(normalisation.std).view(-1, 1, 1)
    if "noise_map" in pictures:
        noise_map = pictures["noise_map"][0]
        shown["vulnerability"] = noise_map / noise_map.max().clamp_min(1e-12)
    if "cam" in pictures:
        shown["cam"] = pictures["cam"]
    return shown

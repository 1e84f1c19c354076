"""The task of scoring one reconstruction, or the mean image in its place, against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import RunError
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import RECONSTRUCTION
from shadow_defense.experiment.tasks.keys import key_of, score_key
from shadow_defense.federated.batch_norm_policy import evaluable_state
from shadow_defense.federated.rounds import read_journal, state_folder, train_again
from shadow_defense.files import read_json, read_tensors, write_json
from shadow_defense.metrics.fidelity import score_reconstructions
from shadow_defense.metrics.lpips import Lpips, load_lpips
from shadow_defense.models.class_activation import class_activation_maps, find_cam_layer, keep_top
from shadow_defense.progress import Progress
from shadow_defense.report.records.reading import read_record, record_values
from shadow_defense.report.records.scores import MEAN_IMAGE

SCORES = "scores.json"

PLACES = ("reconstruction", "truth")
"""What a row of :func:`score_reconstructions` holds besides metrics."""


@dataclass(frozen=True)
class ImageScore:
    """One reconstruction, by its index, the image that it was matched to, and how close it comes.

    Attributes:
        truth, sample_id: index and id of the image; None where no image was left.
        metrics: such as ``psnr_whole``, as far as they exist.
    """

    reconstruction: int
    truth: int | None
    sample_id: str | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """The scores of one attack on one update; without a matching loss where the attack does not know whose is which."""

    arm: str
    attack: str
    round: int
    client: str
    rows: tuple[ImageScore, ...]
    matching_loss: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    def matched(self) -> dict[str, ImageScore]:
        """Of each image, by its id, the reconstruction that was matched to it."""
        return {row.sample_id: row for row in self.rows if row.sample_id is not None}


@dataclass(frozen=True, eq=False)
class Scoring(Task):
    """The scores of one attack, under the name of an arm or of a control.

    Attributes:
        arm: the name in tables: of the attacked arm, or :data:`MEAN_IMAGE`, scored in place of what the attack
            rebuilt, or :data:`RANDOM_UPDATE`.
        attack: the task whose reconstruction is scored, or counted.
        reference: the training of the first arm, whose final model shows the foreground.
    """

    scene: Scene
    job: Job
    arm: str
    attack: Task
    reference: Task

    kind = "score"

    @cached_property
    def key(self) -> str:
        key = score_key(self.scene, self.attack.key, self.reference.key)
        return key_of(key, MEAN_IMAGE) if self.arm == MEAN_IMAGE else key

    @property
    def about(self) -> str:
        job = self.job
        return f"seed {self.scene.config.seed}, {self.arm}: {job.attack}, round {job.round + 1}, {job.client}, scores"

    def describe(self) -> Mapping[str, Any]:
        metrics = self.scene.config.metrics.model_dump(mode="json")
        return {"attack": self.attack.name, "mean_image": self.arm == MEAN_IMAGE, "metrics": metrics}

    def needs(self) -> Sequence[Task]:
        return [self.reference, self.attack]

    def is_done(self, place: Path) -> bool:
        return (place / SCORES).is_file()

    def compute(self, store: Store, progress: Progress) -> None:
        found = Reconstruction.load(store.place(self.attack) / RECONSTRUCTION)
        truths = self.scene.client(self.job.client).train
        images = found.images
        if self.arm == MEAN_IMAGE:
            images = self.scene.mean_image.expand(len(images), -1, -1, -1)
        rows = score_rows(images, truths, self._masks(store), self._lpips())
        job = self.job
        mean_image = self.arm == MEAN_IMAGE
        loss = found.matching_loss if math.isfinite(found.matching_loss) else None
        extra = (None, None, ()) if mean_image else (loss, found.seconds, found.notes)
        score = Score(self.arm, job.attack, job.round, job.client, rows, *extra)
        write_json(store.place(self) / SCORES, record_values(score))

    def load(self, store: Store) -> Score:
        """The scores, under this task's arm. Raises :class:`RunError` where they are missing or damaged."""
        path, job = store.place(self) / SCORES, self.job
        score = read_record(Score, read_json(path), str(path), "delete it to have them computed again")
        return replace(score, arm=self.arm, attack=job.attack, round=job.round, client=job.client)

    def _masks(self, store: Store) -> Bool[Tensor, "n h w"]:
        return foreground_masks(self.scene, store.place(self.reference), self.job.client)

    def _lpips(self) -> Lpips | None:
        metrics = self.scene.config.metrics
        return None if metrics.lpips is None else _lpips(metrics.lpips, metrics.lpips_weights)


_lpips = lru_cache(maxsize=1)(load_lpips)


def foreground_masks(scene: Scene, training: Path, client: str) -> Bool[Tensor, "n h w"]:
    """The foreground of a client's images by the first arm's training; once a process: all arms and rounds share it."""
    known: dict[tuple[str, str, float], Tensor] = scene.images.__dict__.setdefault("masks", {})
    place = (str(training), client, scene.config.metrics.foreground_share)
    if place not in known:
        known[place] = Foreground(scene, training).masks(scene.client(client).train)
    return known[place]


class Foreground:
    """Where the diagnosis looks: the lesion mask where the data has one, else the top of a Grad-CAM++.

    The map is that of the first arm's final model and of each image's true class, so that all arms share it.
    """

    def __init__(self, scene: Scene, training: Path) -> None:
        arm, rounds = scene.reference, scene.config.training.rounds
        self._scene, self._model = scene, scene.new_model(arm)
        if read_journal(training)[0] < rounds:
            raise RunError(f"arm '{arm}' is not fully trained yet: run the stage `train` first")
        state, _ = read_tensors(state_folder(training, rounds) / "global.safetensors", train_again(training))
        share_bn, batch_norm = scene.config.arms[arm].share_bn, scene.config.training.batch_norm
        self._model.load_state_dict(evaluable_state(self._model, state, share_bn, batch_norm, scene.dataset))

    def cams(self, images: ImageSet) -> Float[Tensor, "n h w"]:
        """Grad-CAM++ of each image's true class, in [0, 1]."""
        normalised = self._scene.dataset.normalisation.apply(images.unit_images())
        layer = find_cam_layer(self._model, normalised)
        return torch.cat(
            [
                class_activation_maps(self._model, self._model, chunk, labels, layer)
                for chunk, labels in zip(normalised.split(32), images.labels.split(32), strict=True)
            ]
        )

    def masks(self, images: ImageSet) -> Bool[Tensor, "n h w"]:
        if images.masks is not None:
            return images.masks
        return keep_top(self.cams(images), self._scene.config.metrics.foreground_share) > 0


def score_rows(reconstructions: Tensor, truths: ImageSet, masks: Tensor, lpips: Lpips | None) -> tuple[ImageScore, ...]:
    """One score a reconstruction."""
    rows = []
    for index, row in enumerate(score_reconstructions(reconstructions, truths.unit_images(), masks, lpips)):
        truth = None if row["truth"] is None else int(row["truth"])
        metrics = {name: value for name, value in row.items() if value is not None and name not in PLACES}
        rows.append(ImageScore(index, truth, None if truth is None else truths.sample_ids[truth], metrics))
    return tuple(rows)

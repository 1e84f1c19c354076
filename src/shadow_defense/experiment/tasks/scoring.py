"""The task of scoring one reconstruction, or the mean image in its place, against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import ModelError
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.store import RecordTask, Store
from shadow_defense.experiment.task import Task
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.keys import score_parts
from shadow_defense.experiment.tasks.training import final_model
from shadow_defense.metrics.fidelity import score_reconstructions
from shadow_defense.metrics.lpips import Lpips, load_lpips
from shadow_defense.models.class_activation import class_activation_maps, find_cam_layer, keep_top
from shadow_defense.progress import Progress
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
    """The scores of one attack on one update; without a matching loss where the attack does not know whose is which.

    Attributes:
        misfit: by which one attack on the update is believed rather than another, without the truth.
    """

    arm: str
    attack: str
    round: int
    client: str
    rows: tuple[ImageScore, ...]
    matching_loss: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    seed: int = 0
    misfit: float | None = None

    def matched(self) -> dict[str, ImageScore]:
        """Of each image, by its id, the reconstruction that was matched to it."""
        return {row.sample_id: row for row in self.rows if row.sample_id is not None}


@dataclass(frozen=True, eq=False)
class Scoring(RecordTask[Score]):
    """The scores of one attack.

    Attributes:
        attack: the task whose reconstruction is scored, or counted.
        reference: the training of the first arm, whose final model shows the foreground.
        mean_image: that one is scored, in place of what the attack rebuilt.
    """

    attack: Attacking
    reference: Task
    mean_image: bool = False

    kind = "score"
    file = SCORES
    record = Score

    @property
    def scene(self) -> Scene:
        return self.attack.scene

    @property
    def job(self) -> Job:
        return self.attack.job

    @property
    def arm(self) -> str:
        """The name in tables: of the attacked arm, or of a control."""
        return MEAN_IMAGE if self.mean_image else self.attack.arm

    def decided_by(self) -> Mapping[str, object]:
        scored = score_parts(self.scene, self.attack.name, self.reference.name)
        return {**scored, "mean_image": self.mean_image}

    @property
    def about(self) -> str:
        job = self.job
        return f"seed {self.scene.config.seed}, {self.arm}: {job.attack}, round {job.round + 1}, {job.client}, scores"

    def needs(self) -> Sequence[Task]:
        return [self.reference, self.attack]

    def compute(self, store: Store, progress: Progress) -> None:
        found, job, metrics = self.attack.load(store), self.job, self.scene.config.metrics
        truths = self.scene.client(job.client).train
        images = found.images
        if self.mean_image:
            images = self.scene.mean_image.expand(len(images), -1, -1, -1)
        masks = foreground_masks(self.scene, store.place(self.reference), job.client)
        lpips = None if metrics.lpips is None else _lpips(metrics.lpips, metrics.lpips_weights)
        rows = score_rows(images, truths, masks, lpips)
        score = Score(self.arm, job.attack, job.round, job.client, rows, seed=self.scene.config.seed)
        if not self.mean_image:
            loss = found.matching_loss if math.isfinite(found.matching_loss) else None
            score = replace(score, matching_loss=loss, seconds=found.seconds, notes=found.notes, misfit=found.misfit)
        self.save(store, score)

    def load(self, store: Store) -> Score:
        """The scores, under this task's names. Raises :class:`RunError` where they are missing or damaged."""
        found, job, seed = super().load(store), self.job, self.scene.config.seed
        return replace(found, arm=self.arm, attack=job.attack, round=job.round, client=job.client, seed=seed)

    def rebuilt(self, store: Store, score: Score) -> dict[str, Float[Tensor, "c h w"]]:
        """Of each image, by its id, what the attack made of it; in [0, 1]."""
        images = self.attack.load(store).images
        return {sample: images[row.reconstruction] for sample, row in score.matched().items()}


_lpips = lru_cache(maxsize=1)(load_lpips)


@lru_cache(maxsize=256)
def foreground_masks(scene: Scene, training: Path, client: str) -> Bool[Tensor, "n h w"] | None:
    """The foreground of a client's images by the first arm's training; once a process: all arms and rounds share it."""
    return Foreground(scene, training).masks(scene.client(client).train)


class Foreground:
    """Where the diagnosis looks: the lesion mask where the data has one, else the top of a Grad-CAM++.

    The map is that of the first arm's final model and of each image's true class, so that all arms share it. A model
    without a feature map, such as a program from a file, has none: nothing is then said of the foreground.
    """

    def __init__(self, scene: Scene, training: Path) -> None:
        self._scene, self._model = scene, final_model(scene, scene.reference, training).cpu()

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

    def masks(self, images: ImageSet) -> Bool[Tensor, "n h w"] | None:
        """None where neither the data nor the model says."""
        if images.masks is not None:
            return images.masks
        try:
            cams = self.cams(images)
        except ModelError:
            return None
        return keep_top(cams, self._scene.config.metrics.foreground_share) > 0


def score_rows(
    reconstructions: Tensor, truths: ImageSet, masks: Tensor | None, lpips: Lpips | None
) -> tuple[ImageScore, ...]:
    """One score a reconstruction."""
    rows = []
    for index, row in enumerate(score_reconstructions(reconstructions, truths.unit_images(), masks, lpips)):
        truth = None if row["truth"] is None else int(row["truth"])
        metrics = {name: value for name, value in row.items() if value is not None and name not in PLACES}
        rows.append(ImageScore(index, truth, None if truth is None else truths.sample_ids[truth], metrics))
    return tuple(rows)

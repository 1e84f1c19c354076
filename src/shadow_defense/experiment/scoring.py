"""Every reconstruction scored against the truth, and the mean image beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import RunError
from shadow_defense.experiment.attacking import Job, jobs
from shadow_defense.experiment.run import Run
from shadow_defense.federated.batch_norm_policy import evaluable_state
from shadow_defense.federated.rounds import read_journal, state_folder, train_again
from shadow_defense.files import read_tensors
from shadow_defense.metrics.fidelity import score_reconstructions
from shadow_defense.metrics.lpips import Lpips, load_lpips
from shadow_defense.models.class_activation import class_activation_maps, find_cam_layer, keep_top
from shadow_defense.progress import Progress

MEAN_IMAGE = "mean image"
"""The baseline arm: what an attacker draws who never looks at an update."""


@dataclass(frozen=True)
class Score:
    """The scores of one attack on one update; ``rows`` has one dict a reconstruction, with its ``sample_id``."""

    arm: str
    attack: str
    round: int
    client: str
    rows: tuple[dict[str, Any], ...]
    matching_loss: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()


class Foreground:
    """Where the diagnosis looks: the lesion mask where the data has one, else the top of a Grad-CAM++.

    The map is that of the first arm's final model and of each image's true class, so that all arms share it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._share = run.config.metrics.foreground_share
        arm = next(iter(run.config.arms))
        self._model = run.new_model(arm)
        folder, rounds = run.arm_folder(arm), run.config.training.rounds
        if read_journal(folder)[0] < rounds:
            raise RunError(f"arm '{arm}' is not fully trained yet: run `shadow-defense train {run.folder}` first")
        state, _ = read_tensors(state_folder(folder, rounds) / "global.safetensors", train_again(folder))
        share_bn, batch_norm = run.config.arms[arm].share_bn, run.config.training.batch_norm
        self._model.load_state_dict(evaluable_state(self._model, state, share_bn, batch_norm, run.dataset))

    def cams(self, images: ImageSet) -> Tensor:
        """Grad-CAM++ of each image's true class, (n, h, w) in [0, 1]."""
        normalised = self._run.dataset.normalisation.apply(images.unit_images())
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
        return keep_top(self.cams(images), self._share) > 0


def load_reconstruction(run: Run, job: Job) -> Reconstruction:
    """The stored result of one attack. Raises :class:`RunError` when the attack has not run."""
    path = run.reconstruction_path(job.arm, job.attack, job.round, job.client)
    if not path.exists():
        raise RunError(f"{path} is missing: run `shadow-defense attack {run.folder}` first")
    return Reconstruction.load(path)


def score_all(run: Run, progress: Progress | None = None) -> list[Score]:
    """The scores of every attack, and of the mean image on the same updates."""
    settings = run.config.metrics
    lpips = load_lpips(settings.lpips, settings.lpips_weights) if settings.lpips else None
    foreground = Foreground(run)
    work = jobs(run)
    # Once a client: its masks serve every arm, attack and round.
    masks = {name: foreground.masks(run.client(name).train) for name in {job.client: None for job in work}}
    task = (progress or Progress()).start("scoring reconstructions", len(work))
    scores = []
    first_arm = next(iter(run.config.arms))
    for job in work:
        found = load_reconstruction(run, job)
        truths = run.client(job.client).train
        rows = score_rows(found.images, truths, masks[job.client], lpips)
        scores.append(
            Score(job.arm, job.attack, job.round, job.client, rows, found.matching_loss, found.seconds, found.notes)
        )
        if job.arm == first_arm:
            blank = run.mean_image.expand(len(found.images), -1, -1, -1)
            rows = score_rows(blank, truths, masks[job.client], lpips)
            scores.append(Score(MEAN_IMAGE, job.attack, job.round, job.client, rows))
        task.advance()
    task.finish()
    return scores


def score_rows(
    reconstructions: Tensor, truths: ImageSet, masks: Tensor, lpips: Lpips | None
) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = []
    for row in score_reconstructions(reconstructions, truths.unit_images(), masks, lpips):
        truth = row["truth"]
        rows.append({**row, "sample_id": None if truth is None else truths.sample_ids[int(truth)]})
    return tuple(rows)

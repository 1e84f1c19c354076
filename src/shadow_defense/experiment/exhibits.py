"""The pictures of a report: what was rebuilt, and where the noise went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.errors import RunError
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.federated.rounds import explanation_name, round_folder, train_again
from shadow_defense.files import nest_tensors, read_tensors
from shadow_defense.report.records.run import ArmPictures, Exhibit
from shadow_defense.report.records.scores import MEAN_IMAGE
from shadow_defense.shadow.sample_store import unpack_samples

MOST_EXHIBITS = 24
"""More pictures would make the page heavy without saying more."""


def collect_exhibits(run: Run, scores: Sequence[Score]) -> tuple[Exhibit, ...]:
    """Up to :data:`MOST_EXHIBITS` images, taken in turn from every attacked update so that each shows some."""
    by_update: dict[tuple[str, int, str], dict[str, Score]] = {}
    for score in scores:
        by_update.setdefault((score.attack, score.round, score.client), {})[score.arm] = score
    each = max(1, MOST_EXHIBITS // max(len(by_update), 1))
    shown = []
    for by_arm in by_update.values():
        first = by_arm[run.reference]
        # In the client's order: only its first images have explanations.
        samples = [sample for sample in run.client(first.client).train.sample_ids if sample in first.matched()]
        shown += [(first, sample, by_arm) for sample in samples[:each]]
    return tuple(_exhibit(run, first, sample, by_arm) for first, sample, by_arm in shown[:MOST_EXHIBITS])


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

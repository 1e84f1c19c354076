"""The scores of a run, image by image, as a file; and its pictures: what was rebuilt, and where the noise went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter
from torch import Tensor

from shadow_defense.attacks.observation import Reconstruction
from shadow_defense.data.dataset import ClientData
from shadow_defense.errors import RunError, shown
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.scene import Job
from shadow_defense.experiment.tasks.scoring import Score
from shadow_defense.federated.training_folder import read_explanations
from shadow_defense.files import write_json
from shadow_defense.report.records.run import Explanation, Patient, RunRecord, Sight

MOST_PATIENTS = 24
"""More pictures would make the page heavy without saying more."""


def write_scores(run: Run, scores: Sequence[Score]) -> None:
    write_json(run.folder / "scores.json", TypeAdapter(list[Score]).dump_python(list(scores), mode="json"))


def evaluate_again(run: Run) -> str:
    """How results that cannot be read are mended."""
    return f"run `shadow-defense evaluate {run.folder}` again"


def collect_patients(run: Run, record: RunRecord) -> tuple[Patient, ...]:
    """The images of which most is left in the arm that hides most, at most :data:`MOST_PATIENTS`, in clients' order.

    Raises :class:`RunError` where what was rebuilt of them is not there.
    """
    left = record.closest(record.answer or run.reference)
    chosen = sorted(left.values(), key=lambda sight: sight.share, reverse=True)[:MOST_PATIENTS]
    kept = {(sight.client, sight.sample_id) for sight in chosen}

    def rebuilt(sight: Sight) -> Tensor:
        images = _reconstruction(run, Job(sight.arm, sight.attack, sight.round - 1, sight.client)).images
        if not 0 <= sight.reconstruction < len(images):
            raise RunError(
                f"{run.results_path} names image {sight.reconstruction} of {len(images)} that '{shown(sight.attack)}' "
                f"rebuilt: {evaluate_again(run)}"
            )
        return images[sight.reconstruction]

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

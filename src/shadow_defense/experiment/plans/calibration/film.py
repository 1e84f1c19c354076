"""One image over all measured strengths: what the attack made of it."""

from __future__ import annotations

from collections.abc import Sequence

from shadow_defense.experiment.plans.calibration.runs import Calibrating
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.metrics.ssim import ssim
from shadow_defense.report.records.calibration import Film, Frame, ScheduleEntry
from shadow_defense.shadow.noise import Schedule


def film(runs: Calibrating, entries: Sequence[tuple[Schedule, ScheduleEntry]]) -> Film:
    """The image that the attack comes closest to without defense, at every strength that was measured."""
    probe, first = runs.probes[0], entries[0][0]
    undefended = runs.scorings_of(0.0, first)
    _, client, sample = max(
        (row.metrics["ssim_whole"], scoring.job.client, sample)
        for scoring in undefended
        for sample, row in scoring.load(runs.store).matched().items()
    )
    images = probe.client(client).train
    place = images.sample_ids.index(sample)
    original = images.unit_images()[place]

    def frame(strength: float, schedule: Schedule) -> Frame:
        seen = [each for each in runs.scorings_of(strength, schedule) if each.job.client == client]
        found = {each: each.load(runs.store).matched()[sample].metrics["ssim_whole"] for each in seen}
        closest: Scoring = max(found, key=lambda each: found[each])
        rebuilt = closest.rebuilt(runs.store, closest.load(runs.store))[sample]
        return Frame(strength, rebuilt, found[closest], closest.job.round + 1)

    return Film(
        client=client,
        class_name=probe.dataset.class_names[int(images.labels[place])],
        original=original,
        mean_image=probe.mean_image,
        mean_image_ssim=float(ssim(probe.mean_image[None], original[None])[0]),
        strips={
            schedule: tuple(frame(each.strength, schedule) for each in entry.measurements)
            for schedule, entry in entries
        },
    )

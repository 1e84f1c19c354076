"""A whole calibration: every schedule bisected, the weakest setting chosen, the JSON and the page written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.config import RunConfig
from shadow_defense.experiment.described import data_of, made
from shadow_defense.experiment.folder import open_folder
from shadow_defense.experiment.plans.calibration.bisection import CalibrationSettings
from shadow_defense.experiment.plans.calibration.runs import Calibrating
from shadow_defense.experiment.tasks.checking import CHECKING
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.files import write_text
from shadow_defense.metrics.ssim import ssim
from shadow_defense.progress import Progress
from shadow_defense.report.pages.calibrate import render_calibration
from shadow_defense.report.records.calibration import CalibrationRecord, Chosen, Film, Frame, ScheduleEntry, Strength
from shadow_defense.report.records.reading import write_record
from shadow_defense.report.sentences.calibration import calibration_verdict
from shadow_defense.shadow.noise import Schedule

ARM = "shadow-calibrated"
"""The name under which the chosen setting is to be pasted below ``arms``."""


def run_calibration(
    folder: Path,
    config: RunConfig,
    settings: CalibrationSettings,
    progress: Progress | None = None,
    on_measurement: Callable[[Schedule, Strength], None] = lambda schedule, measurement: None,
) -> CalibrationRecord:
    """Calibrate every schedule below ``folder``, or go on with it; writes ``calibration.json`` and the page.

    Another target, tolerance or schedule uses the results that are there.

    Args:
        on_measurement: hears every measurement as it comes.

    Raises:
        RunError: when the folder holds something else, or a calibration of another configuration.
        ConfigError: when the target or the attack cannot be calibrated (:meth:`Calibrating.check`).
    """
    runs = Calibrating(folder, config, settings, progress)
    with runs.progress.during(CHECKING):
        runs.check()
    base = open_folder(folder, "calibration", config.as_dict())
    undefended = runs.undefended
    entries = [(each, runs.calibrate(each, on_measurement)) for each in dict.fromkeys(settings.schedules)]
    attack = runs.config.attacks[runs.attack]
    defended = [each for _, entry in entries for each in entry.measurements if each.strength > 0]
    title = f"{config.title}: calibrated against {runs.attack}"
    record = CalibrationRecord(
        **vars(made(title, _command(base, runs, settings), config.threads, runs.store.origins(runs.computed))),
        data=data_of(runs.probes[0]),
        config=config.as_dict(),
        settings=settings.model_dump(mode="json"),
        target=settings.target,
        attack=runs.attack,
        attack_settings={"attack": attack.attack, **attack.resolved()},
        threat_model=threat_model(attack.threat_model).describe(),
        seeds=runs.seeds,
        mean_image=runs.mean_image(),
        undefended=undefended,
        schedules=dict(entries),
        chosen=_chosen(runs, entries),
        seconds=undefended.seconds + sum(measured.seconds for measured in defended),
    )
    record = replace(record, verdict=tuple(calibration_verdict(record)))
    write_record(folder / "calibration.json", record)
    write_text(folder / "calibration.html", render_calibration(record, film(runs, entries)))
    return record


def _chosen(runs: Calibrating, entries: Sequence[tuple[Schedule, ScheduleEntry]]) -> Chosen | None:
    """Of the schedules' certain strengths the one whose amplitude, averaged over the rounds, is least."""
    candidates = [
        Chosen(
            schedule=schedule,
            arm={ARM: runs.defense(measured.strength, schedule).model_dump(mode="json")},
            **{field.name: getattr(measured, field.name) for field in fields(Strength)},
        )
        for schedule, entry in entries
        if entry.outcome == "found"
        for measured in entry.measurements
        if measured.strength == entry.certain.holds
    ]
    return min(candidates, key=lambda candidate: candidate.mean_amplitude, default=None)


def _command(base: Path, runs: Calibrating, settings: CalibrationSettings) -> str:
    target, seeds = settings.target, ",".join(map(str, runs.seeds))
    return (
        f"shadow-defense calibrate {base} --target {target} --attack {runs.attack} "
        f"--schedules {','.join(settings.schedules)} --tolerance {settings.tolerance:g} --most {settings.most:g} "
        f"--seeds {seeds}{',' if len(runs.seeds) == 1 else ''} --out {base.parent}-again"
    )


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

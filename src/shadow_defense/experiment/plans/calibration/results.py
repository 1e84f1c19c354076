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
from shadow_defense.experiment.plans.calibration.film import film
from shadow_defense.experiment.plans.calibration.runs import Calibrating
from shadow_defense.files import write_text
from shadow_defense.progress import Progress
from shadow_defense.report.pages.calibrate import render_calibration
from shadow_defense.report.records.calibration import CalibrationRecord, Chosen, ScheduleEntry, Strength
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

"""A whole calibration: every schedule bisected, the weakest setting chosen, the JSON and the page written."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.config import RunConfig
from shadow_defense.experiment.described import data_of
from shadow_defense.experiment.plans.calibration.bisection import CalibrationSettings
from shadow_defense.experiment.plans.calibration.runs import Calibrating, Measurement, mean_amplitude
from shadow_defense.experiment.plans.folder import open_folder
from shadow_defense.experiment.provenance import versions
from shadow_defense.files import write_json, write_text
from shadow_defense.metrics.confidence import paired_difference
from shadow_defense.progress import Progress
from shadow_defense.report.pages.calibrate import render_calibration
from shadow_defense.report.records.calibration import CalibrationRecord
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.sentences.calibration import calibration_verdict
from shadow_defense.shadow.noise import Schedule

ARM = "shadow-calibrated"
"""The name under which the chosen setting is to be pasted below ``arms``."""


def run_calibration(
    folder: Path,
    config: RunConfig,
    settings: CalibrationSettings,
    progress: Progress | None = None,
    on_measurement: Callable[[Schedule, Measurement], None] = lambda schedule, measurement: None,
) -> dict[str, Any]:
    """Calibrate every schedule below ``folder``, or go on with it; returns what ``calibration.json`` holds.

    Another target, tolerance or schedule uses the runs that are there.

    Args:
        on_measurement: hears every measurement as it comes.

    Raises:
        RunError: when the folder holds something else, or a calibration of another configuration.
        ConfigError: when the target or the attack cannot be calibrated (:meth:`Calibrating.check`).
    """
    runs = Calibrating(folder, config, settings, progress)
    runs.check()
    base = open_folder(folder, "calibration", config.as_dict())
    undefended = runs.undefended()
    schedules: dict[Schedule, dict[str, Any]] = {}
    for schedule in dict.fromkeys(settings.schedules):
        found, measurements = runs.calibrate(schedule, on_measurement)
        schedules[schedule] = {
            "outcome": found.outcome,
            "certain": asdict(found.certain),
            "average": asdict(found.average),
            "leaks": found.leaks,
            "rises": [asdict(rise) for rise in found.rises],
            "held_earlier": found.held_earlier,
            "measurements": [
                _measurement(measured, undefended, mean_amplitude(config, strength, schedule))
                for strength, measured in measurements.items()
            ],
        }
    attack = runs.config.attacks[runs.attack]
    results: dict[str, Any] = {
        "title": f"{config.title}: calibrated against {runs.attack}",
        "created": datetime.date.today().isoformat(),
        "command": _command(base, runs.attack, settings),
        "versions": {**versions(), "threads": str(config.threads)},
        "data": asdict(data_of(runs.probes[0])),
        "config": config.as_dict(),
        "settings": settings.model_dump(mode="json"),
        "target": settings.target.model_dump(),
        "attack": runs.attack,
        "attack_settings": {"attack": attack.attack, **attack.build().model_dump(mode="json")},  # type: ignore[attr-defined]
        "threat_model": threat_model(attack.threat_model).describe(),
        "seeds": list(runs.seeds),
        "mean_image": {metric: asdict(leakage) for metric, leakage in runs.mean_image().items()},
        "undefended": _measurement(undefended, undefended, 0.0),
        "schedules": schedules,
        "chosen": _chosen(runs, schedules),
    }
    results["seconds"] = undefended.seconds + sum(
        measured["seconds"]
        for entry in schedules.values()
        for measured in entry["measurements"]
        if measured["strength"] > 0
    )
    results["verdict"] = calibration_verdict(read_record(CalibrationRecord, results))
    write_json(folder / "calibration.json", results)
    write_text(folder / "calibration.html", render_calibration(read_record(CalibrationRecord, results)))
    return results


def _measurement(measured: Measurement, undefended: Measurement, amplitude: float) -> dict[str, Any]:
    difference = paired_difference(measured.f1, undefended.f1)
    interval = None if difference.interval is None else list(difference.interval)
    return {
        "strength": measured.strength,
        "mean_amplitude": amplitude,
        "leakage": {metric: asdict(leakage) for metric, leakage in measured.leakage.items()},
        "f1": list(measured.f1),
        "f1_difference": {"mean": difference.mean, "interval": interval},
        "seconds": measured.seconds,
    }


def _chosen(runs: Calibrating, schedules: Mapping[Schedule, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of the schedules' certain strengths the one whose amplitude, averaged over the rounds, is least."""
    candidates = [
        {"schedule": schedule, "arm": {ARM: arm}, **measured}
        for schedule, entry in schedules.items()
        if entry["outcome"] == "found"
        for measured in entry["measurements"]
        if measured["strength"] == entry["certain"]["holds"]
        for arm in [runs.defense(measured["strength"], schedule).model_dump(mode="json")]
    ]
    return min(candidates, key=lambda candidate: candidate["mean_amplitude"], default=None)


def _command(base: Path, attack: str, settings: CalibrationSettings) -> str:
    target = settings.target
    return (
        f"shadow-defense calibrate {base} --target {target.metric}={target.value:g} --attack {attack} "
        f"--schedules {','.join(settings.schedules)} --tolerance {settings.tolerance:g} --most {settings.most:g} "
        f"--seeds {settings.seeds} --out {base.parent}-again"
    )

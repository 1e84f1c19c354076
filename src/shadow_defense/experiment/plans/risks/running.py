"""Carry the experiments out, one after another: a run directory for each sub-run, then numbers and the page."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.risk import Finding, Risk, Runs
from shadow_defense.experiment.provenance import versions
from shadow_defense.experiment.run import Run
from shadow_defense.experiment.store import Store
from shadow_defense.files import read_json, write_json, write_text
from shadow_defense.progress import Progress
from shadow_defense.report.pages.risks import render_risks
from shadow_defense.report.records.reading import read_record
from shadow_defense.report.records.risks import RisksRecord

RESULTS, PAGE = "risks.json", "risks.html"


def run_risks(
    base: RunConfig,
    risks: Sequence[Risk],
    out: Path,
    *,
    seeds: int = 1,
    restart: bool = False,
    command: str = "shadow-defense risks",
    progress: Progress | None = None,
) -> Iterator[tuple[Risk, Finding]]:
    """Run the experiments and yield each finding as it comes; ``risks.json`` and ``risks.html`` grow with them.

    A sub-run is the run directory ``out/<risk>/seed-<seed>/<label>``; what is there already is not run again.
    Findings of other risks that an earlier call wrote with the same base and seeds stay on the page.

    Args:
        seeds: how many, from the base's own seed upwards.
        restart: delete the chosen risks' run directories and begin anew.
        command: what the user gave, for the page.

    Raises:
        ConfigError: before anything is run, for a base that one of the risks cannot be tested on.
        RunError: when ``out`` holds the sub-runs of another base.
    """
    progress = progress or Progress()
    bases = [base.model_copy(update={"seed": base.seed + index}) for index in range(seeds)]
    planned = [(risk, [risk.subruns(seeded, _seed_folder(risk, seeded, out)) for seeded in bases]) for risk in risks]
    for risk, per_seed in planned:
        finished: list[Runs] = []
        for seeded, subruns in zip(bases, per_seed, strict=True):
            runs = {}
            for label, subrun in subruns.items():
                folder = _seed_folder(risk, seeded, out) / label
                run = Run.create(folder, subrun.config, restart=restart, store=Store(out))
                subrun.carry_out(run, progress)
                runs[label] = run
            finished.append(runs)
        finding = risk.measure(finished)
        _write(base, seeds, out, command, _entry(risk, finding, finished))
        yield risk, finding


def _seed_folder(risk: Risk, seeded: RunConfig, out: Path) -> Path:
    return out / risk.folder / f"seed-{seeded.seed}"


def _entry(risk: Risk, finding: Finding, finished: Sequence[Runs]) -> dict[str, Any]:
    # Only what was attacked has pictures to show.
    folders = [str(run.folder) for runs in finished for run in runs.values() if run.results_path.exists()]
    return {
        "number": risk.number,
        "name": risk.name,
        "claim": risk.claim,
        "experiment": risk.experiment,
        "finding": finding.as_dict(),
        "folders": folders,
    }


def _fingerprint(base: RunConfig, seeds: int) -> str:
    return hashlib.sha256(f"{base.fingerprint()} {seeds}".encode()).hexdigest()[:16]


def _write(base: RunConfig, seeds: int, out: Path, command: str, entry: dict[str, Any]) -> None:
    path, fingerprint = out / RESULTS, _fingerprint(base, seeds)
    earlier: list[dict[str, Any]] = []
    if path.exists():
        record = read_json(path)
        if record.get("fingerprint") == fingerprint:
            earlier = [other for other in record["risks"] if other["number"] != entry["number"]]
    results = {
        "title": base.title,
        "created": datetime.date.today().isoformat(),
        "command": command,
        "fingerprint": fingerprint,
        "seeds": [base.seed + index for index in range(seeds)],
        "versions": versions(),
        "config": base.as_dict(),
        "risks": sorted([*earlier, entry], key=lambda each: each["number"]),
    }
    write_json(path, results)
    write_text(out / PAGE, render_risks(read_record(RisksRecord, results)))

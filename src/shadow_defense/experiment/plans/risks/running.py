"""The seven risks, carried out one after another, and what they found: ``risks.json`` and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from shadow_defense.config import RunConfig
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.described import made
from shadow_defense.experiment.folder import open_folder
from shadow_defense.experiment.plans.risks import (
    batch_norm,
    client_size,
    cost,
    perturbation,
    pretrained,
    regions,
    rounds,
)
from shadow_defense.experiment.plans.risks.risk import Risk, Trials
from shadow_defense.experiment.scene import Scene
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks.checking import CHECKING
from shadow_defense.experiment.work import Workers
from shadow_defense.files import write_text
from shadow_defense.progress import Progress
from shadow_defense.report.pages.risks import render_risks
from shadow_defense.report.records.reading import load_record, write_record
from shadow_defense.report.records.risks import RiskEntry, RisksRecord
from shadow_defense.report.records.scores import Origin
from shadow_defense.report.sentences.risks import WORDINGS

KIND = "risks"

RESULTS, PAGE = "risks.json", "risks.html"


def run_risks(
    base: RunConfig,
    risks: Sequence[Risk],
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    command: str = "shadow-defense risks",
    progress: Progress | None = None,
) -> Iterator[RiskEntry]:
    """Run the experiments and yield what each found as it comes; ``risks.json`` and ``risks.html`` grow with them.

    Findings of other risks that an earlier call wrote with the same base and seeds stay on the page.

    Args:
        seeds: None: the base's own.
        command: what the user gave, for the page.

    Raises:
        ConfigError: before anything is computed, for a base that one of the risks cannot be tested on.
        RunError: when ``out`` holds something else, or the risks of another base.
    """
    base, store = base.with_absolute_paths(), Store(out)
    if Scene(base).shows_averages:
        raise ConfigError("the risks are measured on updates of single clients: take another engine")
    bases = [base.model_copy(update={"seed": seed}) for seed in seeds or (base.seed,)]
    planned = [(risk, [risk.trials(seeded, store) for seeded in bases]) for risk in risks]
    with (progress or Progress()).during(CHECKING):
        for _, each in planned:
            for trial in each[0].values():
                trial.check()
    open_folder(out, KIND, base.as_dict())
    for risk, each in planned:
        _carry_out(risk, each, store, progress)
        finding = risk.measure(each)
        origins = store.origins(task for trials in each for trial in trials.values() for task in trial.tasks())
        entry = RiskEntry(
            number=risk.number,
            name=risk.name,
            claim=risk.claim,
            experiment=risk.experiment,
            finding=finding,
            outcome=finding.outcome,
            sentence=WORDINGS[risk.number].sentence(finding),
            results=tuple(f"{origin.kind}-{origin.key}" for origin in origins),
        )
        _write(base, [seeded.seed for seeded in bases], out, command, entry, origins)
        yield entry


def _carry_out(risk: Risk, seeds: Sequence[Trials], store: Store, progress: Progress | None) -> None:
    """Label by label, all seeds at once: a later trial may begin with what an earlier one ended with."""
    for label, first in seeds[0].items():
        tasks = [task for trials in seeds for task in trials[label].tasks()]
        workers = Workers(first.config.workers, first.config.threads)
        carry_out(tasks, store, workers, progress, name=f"risk {risk.number}, {label}")


def _write(
    base: RunConfig, seeds: Sequence[int], out: Path, command: str, entry: RiskEntry, origins: Sequence[Origin]
) -> None:
    path = out / RESULTS
    entries, found = {entry.number: entry}, {f"{origin.kind}-{origin.key}": origin for origin in origins}
    if path.exists():
        earlier = load_record(RisksRecord, path, "delete it, and give the same command again")
        if earlier.seeds == tuple(seeds):
            entries = {each.number: each for each in earlier.risks} | entries
            found = {f"{origin.kind}-{origin.key}": origin for origin in earlier.tasks} | found
    shown = tuple(entries[number] for number in sorted(entries))
    names = dict.fromkeys(name for each in shown for name in each.results)
    record = RisksRecord(
        **vars(made(base.title, command, base.threads, tuple(found[name] for name in names))),
        seeds=tuple(seeds),
        config=base.as_dict(),
        risks=shown,
    )
    write_record(path, record)
    write_text(out / PAGE, render_risks(record))


RISKS: dict[int, Risk] = {
    1: perturbation.RISK,
    2: batch_norm.RISK,
    3: rounds.RISK,
    4: pretrained.RISK,
    5: client_size.RISK,
    6: cost.RISK,
    7: regions.RISK,
}

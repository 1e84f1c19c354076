"""The audit itself: every attack tried, its reconstructions scored and explained, JSON, tensors and page written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from shadow_defense.attacks.analytic import explained
from shadow_defense.attacks.build import reconstruct
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.registry import ATTACKS
from shadow_defense.attacks.target import matching_target
from shadow_defense.errors import RunError, ShadowDefenseError, UpdateError
from shadow_defense.experiment.audit.case import Case
from shadow_defense.experiment.audit.facts import facts_of
from shadow_defense.experiment.audit.scoring import check_limits, exceeded, identify, not_known, risk_rows
from shadow_defense.experiment.described import made
from shadow_defense.files import write_text
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.lpips import Lpips, load_lpips
from shadow_defense.progress import Progress
from shadow_defense.report.pages.audit import render_audit, render_pair
from shadow_defense.report.records.audit import AttackEnd, AuditPair, AuditPictures, AuditRecord, Facts
from shadow_defense.report.records.reading import write_record
from shadow_defense.report.sentences.audit_assessment import assess
from shadow_defense.report.sentences.audit_diagnosis import diagnose
from shadow_defense.report.sentences.audit_outcome import judged
from shadow_defense.threads import threads_of_torch

JSON, PAGE = "audit.json", "audit.html"

PAIR = "pair.json"
"""The record of two audits, beside the page on both."""

LONGEST_UNROLL = 16
"""Local steps that are simulated to judge an attack that has no such setting of its own."""


Keep = Callable[[str, Reconstruction], None]
"""Is given each attack's name and what it rebuilt, as it comes."""


def run_audit(
    folder: Path, case: Case, *, limits: Sequence[Limit] = (), command: str = "", progress: Progress | None = None
) -> AuditRecord:
    """Audit ``case`` and write ``audit.json``, ``audit.html`` and each attack's reconstructions below ``folder``.

    Raises:
        RunError: when ``folder`` is a file or a run directory; else as :func:`audited`.
    """
    return _audited_into(folder, case, limits, command, progress)[0]


def run_pair(
    folder: Path,
    cases: Mapping[str, tuple[str, Case]],
    *,
    limits: Sequence[Limit] = (),
    command: str = "",
    progress: Progress | None = None,
) -> AuditPair:
    """Audit two updates, each into a folder of its name, and write ``pair.json`` and one page on both.

    Args:
        cases: by the folder's name, the title and the case.

    Raises:
        RunError: as :func:`run_audit`; else as :func:`audited`.
    """
    _check_folder(folder)
    ended = {
        title: _audited_into(folder / name, case, limits, command, progress) for name, (title, case) in cases.items()
    }
    audits = {title: record for title, (record, _) in ended.items()}
    pair = AuditPair(
        **vars(made(f"Side by side: {' and '.join(audits)}", command)),
        seed=next(iter(audits.values())).seed,
        audits=audits,
        verdict=tuple(
            f"{title}, {each.assessment.status}: {each.assessment.headline}" for title, each in audits.items()
        ),
    )
    write_record(folder / PAIR, pair)
    write_text(folder / PAGE, render_pair(pair, {title: pictures for title, (_, pictures) in ended.items()}))
    return pair


def _audited_into(
    folder: Path, case: Case, limits: Sequence[Limit], command: str, progress: Progress | None
) -> tuple[AuditRecord, AuditPictures]:
    _check_folder(folder)

    def keep(attack: str, found: Reconstruction) -> None:
        found.save(folder / f"reconstructions-{attack}.safetensors")

    record, pictures = audited(case, limits=limits, command=command, progress=progress, keep=keep)
    write_audit(folder, record, pictures)
    return record, pictures


def write_audit(folder: Path, record: AuditRecord, pictures: AuditPictures) -> None:
    """Write ``audit.json`` and ``audit.html`` into a folder."""
    write_record(folder / JSON, record)
    write_text(folder / PAGE, render_audit(record, pictures))


def audited(
    case: Case,
    *,
    limits: Sequence[Limit] = (),
    command: str = "",
    progress: Progress | None = None,
    keep: Keep = lambda attack, found: None,
) -> tuple[AuditRecord, AuditPictures]:
    """Every attack of ``case`` tried, judged and explained.

    Returns:
        What ``audit.json`` holds; ``exceeded`` has a sentence for each image above a limit, ``not_known`` for each
        attack that cannot tell.

    Raises:
        ConfigError: for a limit on what cannot be measured.
        ModelError, GeneratorError: when every attack is refused by the model or the generator.
    """
    check_limits(limits, case)
    settings = case.config.metrics
    lpips = load_lpips(settings.lpips, settings.lpips_weights) if settings.lpips and case.truths is not None else None
    # All of them first: what cannot be observed is said before anything is tried.
    observations = {name: case.observe(name) for name in case.attacks}
    first = next(iter(observations.values()))
    local = case.local_training
    known = all(seen.grants("labels") for seen in observations.values())
    facts = facts_of(first, local, labels_known=known, optimiser=case.optimiser, loss=case.loss)
    attacks: dict[str, AttackEnd] = {}
    pictures: dict[str, Tensor] = {}
    errors: list[ShadowDefenseError] = []
    # As many as a run's own attacks have, so that an audit of a run's update ends with the same numbers.
    with threads_of_torch(case.config.threads):
        for name, observation in observations.items():
            task = (progress or Progress()).start(name, case.attacks[name].build().steps())
            try:
                found = reconstruct(case.attacks[name], observation, case.seed(name), task)
                keep(name, found)
                end = _end(case, name, observation, found, lpips)
                # An attack that needs the buffers needs them for their statistics.
                reads = "buffers" in case.attacks[name].build().needs
                attacks[name] = judged(name, end, facts, reads_statistics=reads)
                pictures[name] = found.images
            except ShadowDefenseError as error:
                errors.append(error)
                attacks[name] = AttackEnd(sentences=(f"{name} was refused: {' '.join(str(error).split())}.",))
            task.finish()
    if not pictures and all(not isinstance(error, UpdateError) for error in errors):
        raise errors[0]
    record = _record(case, observations, facts, attacks, limits, command)
    return record, AuditPictures(pictures, case.truths, case.mean_image)


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise RunError(f"{folder} is a file: choose another folder with --out")
    if (folder / "config.yaml").exists():
        raise RunError(f"{folder} is a run directory: choose another folder with --out")


def _end(case: Case, name: str, observation: Observation, found: Reconstruction, lpips: Lpips | None) -> AttackEnd:
    rows, precision = [], dict[str, float]()
    if case.truths is not None:
        rows = risk_rows(found.images, case.truths, case.mean_image, lpips)
        if case.gallery is not None:
            observation.model.load_state_dict(dict(observation.global_state))
            rows, precision = identify(rows, found.images, case.gallery, observation.model, observation.normalisation)
    unroll = getattr(case.attacks[name].build(), "longest_unroll", LONGEST_UNROLL)
    mean_image = None if case.mean_image is None else case.mean_image.expand_as(found.images)
    return AttackEnd(
        rows=tuple(rows),
        k_iip=precision,
        labels=tuple(found.labels.tolist()),
        distance=_distance(observation, unroll, found.images, found.labels),
        mean_image_distance=None if mean_image is None else _distance(observation, unroll, mean_image, found.labels),
        iterations=found.iterations,
        seconds=found.seconds,
        notes=tuple(found.notes),
    )


def _distance(observation: Observation, longest_unroll: int, images: Tensor, labels: Tensor) -> float:
    """1 - cosine of the update that ``images`` in [0, 1] cause and the observed one; 1 where it is not defined."""
    target = matching_target(observation, longest_unroll)
    normalised = observation.normalisation.apply(images.to(observation.device))
    distance = explained(observation, target, normalised, labels.to(observation.device))
    return distance if math.isfinite(distance) else 1.0


def _record(
    case: Case,
    observations: Mapping[str, Observation],
    facts: Facts,
    attacks: Mapping[str, AttackEnd],
    limits: Sequence[Limit],
    command: str,
) -> AuditRecord:
    settings = {name: (each.attack, each.build().model_dump(mode="json")) for name, each in case.attacks.items()}  # type: ignore[attr-defined]
    reasons = diagnose(facts)
    above, unknown = tuple(exceeded(limits, attacks)), tuple(not_known(limits, attacks))
    return AuditRecord(
        **vars(made(f"Audit of {case.name}", command)),
        seed=case.config.seed,
        subject=case.subject,
        model=case.config.model.model_dump(mode="json"),
        image_shape=next(iter(observations.values())).image_shape,
        local_training=None if case.local_training is None else asdict(case.local_training),
        threat_models={name: seen.threat_model.describe() for name, seen in observations.items()},
        attack_settings={name: {"attack": attack, **options} for name, (attack, options) in settings.items()},
        facts=facts,
        attacks=attacks,
        diagnosis=reasons,
        assessment=assess(attacks, facts, reasons, exceeded=above, not_known=unknown, not_tried=_not_tried(case)),
        notes=case.notes,
        verdict=tuple(attack.sentences[0] for attack in attacks.values()),
        limits=tuple(limits),
        exceeded=above,
        not_known=unknown,
    )


def _not_tried(case: Case) -> dict[str, str]:
    tried = {settings.attack for settings in case.attacks.values()}
    return {name: kind.summary for name, kind in ATTACKS.own.items() if name not in tried}

"""What a study answers: whether a setting does, which arms stand on the front, and what would change the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shadow_defense.metrics.confidence import Estimate
from shadow_defense.metrics.contrasts import images_to_settle
from shadow_defense.progress import duration
from shadow_defense.report.kit.formatting import counted, listed, number, plain, with_interval
from shadow_defense.report.records.evidence import (
    CONTROLS,
    F1_LOST,
    FOUND,
    LEFT,
    EvidenceRecord,
    Setting,
    against,
)

ASKED = (
    f"Asked: macro F1 lost at most {100 * F1_LOST:g} point, the worst case at most {LEFT:g} dB above the mean image, "
    f"at most {100 * FOUND:g} % of images found again."
)

BARS = {
    "f1": (F1_LOST, "the cost in F1", "trainings of each"),
    "left": (LEFT, "what is left of the images", "audited images"),
    "found": (FOUND, "how many are found again", "audited images"),
}
"""Of each bar: its height, what it is about, and what more of would settle it."""

TASKS = {
    "bound": "worst case",
    "break": "planted break",
    "central-training": "central training",
    "predicted": "tested model",
    "reading-network": "reading network",
    "planted": "malicious server",
    "updates": "update set",
    "score": "scored attack",
}
"""What a task of a kind is called, where it is not called as the kind."""


def answer(record: EvidenceRecord) -> list[str]:
    """Whether each model has a setting, and what would change that; then what stands on the front and beside."""
    answers, beside = list[str](), list[str]()
    for model in dict.fromkeys(setting.model for setting in record.settings):
        own = [setting for setting in record.settings if setting.model == model]
        works = own[0].gives_away
        defended = [setting for setting in own if setting.arm != record.first and (works or setting.stands)]
        answers += [f"{model}: {sentence}" for sentence in (_is_there(defended), *_change(defended))]
        said = [*_front(own), *_beside(own), *_added(own), *_together(own), *_weak(own[0], works)]
        beside += [f"{model}: {sentence}" for sentence in said]
    sentences = [ASKED, *answers, *beside]
    if record.missing:
        counts = listed([_tasks(kind, count) for kind, count in record.missing.items()])
        sentences.append(f"Not all of the study is there. Still to be computed: {counts}.")
    return sentences


def _is_there(settings: Sequence[Setting]) -> str:
    met = [each for each in settings if set(each.outcomes().values()) == {"met"}]
    if met:
        return f"yes: {listed([f'{each.arm} ({_numbers(each)})' for each in met])}."
    nearest = _nearest(_possible(settings))
    if nearest is not None:
        return f"open: {nearest.arm} comes nearest ({_numbers(nearest)}); not settled: {_bars(nearest, 'open')}."
    known = [each for each in settings if each.known]
    nearest = _nearest(known)
    if nearest is None:
        return "nothing was measured far enough for an answer."
    waiting = sum(not (each.known or each.withheld or each.arm in CONTROLS) for each in settings)
    if waiting:
        return f"no answer yet: a bar is clearly missed by {len(known)} of {counted(len(known) + waiting, 'arm')}."
    return f"no: every arm clearly misses a bar; {nearest.arm} ({_numbers(nearest)}) misses {_bars(nearest, 'missed')}."


def _possible(settings: Sequence[Setting]) -> list[Setting]:
    """What misses no bar clearly."""
    return [each for each in settings if each.known and "missed" not in each.outcomes().values()]


def _nearest(settings: Sequence[Setting]) -> Setting | None:
    """The cheapest in F1 of those that hide the images by both bars; where none does, the one that misses fewest
    bars, of these the one that meets most, of these the cheapest, and of unknown cost the one that leaves least."""

    def distance(setting: Setting) -> tuple[float, ...]:
        hidden, found = setting.hides, list(setting.outcomes().values())
        cost = math.inf if setting.f1_lost is None else setting.f1_lost.mean
        left = math.inf if setting.left is None else setting.left.above.mean
        return (not hidden, *((0, 0) if hidden else (found.count("missed"), -found.count("met"))), cost, left)

    return min(settings, key=distance, default=None)


def _bars(setting: Setting, outcome: str) -> str:
    return listed([BARS[name][1] for name, found in setting.outcomes().items() if found == outcome])


def _numbers(setting: Setting) -> str:
    parts, left = [], setting.left
    if setting.f1_lost is not None:
        parts.append(f"F1 lost {_written(_hundredfold(setting.f1_lost))} points")
    if left is not None:
        beside = f" ({_written(left.closest)} in hindsight)" if left.closest not in (None, left.above) else ""
        parts.append(f"{_written(left.above)} dB above the mean image by {left.by}{beside}")
        parts.append(f"{_written(_hundredfold(left.found))} % found among {left.gallery}")
    return ", ".join(parts)


def _written(estimate: Estimate) -> str:
    return plain(with_interval(estimate, 1))


def _hundredfold(share: Estimate) -> Estimate:
    ends = None if share.interval is None else (100 * share.interval[0], 100 * share.interval[1])
    return Estimate(100 * share.mean, ends, share.count)


def _front(settings: Sequence[Setting]) -> list[str]:
    shown = [(each.arm, each.left, each.worth) for each in settings if each.on_front and each.left and each.worth]
    if not shown:
        return []
    shown.sort(key=lambda each: each[1].above.mean)
    names = [f"{arm} ({number(left.above.mean, 1)} dB, F1 {number(worth.f1.mean)})" for arm, left, worth in shown]
    bounded = all(left.bounded for _, left, _ in shown)
    beside = "" if bounded else "; where no worst case is known, what is left is what was found, and may be more"
    return [f"on the front of what is left and F1, best protected first: {plain(listed(names))}{beside}."]


def _change(settings: Sequence[Setting]) -> list[str]:
    """How many trainings or images would settle the open bars of the nearest arm."""
    each, clauses = _nearest(_possible(settings)), list[str]()
    if each is not None:
        left = each.left if each.left is not None and each.left.bounded else None
        measures = {
            "f1": each.f1_lost,
            "left": None if left is None else left.above,
            "found": None if left is None else left.found,
        }
        for name, outcome in each.outcomes().items():
            (bar, about, units), measure = BARS[name], measures[name]
            count = None if measure is None else images_to_settle(measure, bar)
            if outcome == "open" and measure is not None and count is not None:
                # All trainings are tested on the same images.
                had = len(each.worth.f1_of_seeds) if name == "f1" and each.worth else measure.count
                wanted = math.ceil(count * had / measure.count)
                clauses.append(f"{wanted} {units} in place of {had} for {about} of {each.arm}")
    return [f"at the means and spreads seen here, {listed(clauses)} would settle it."] if clauses else []


def _weak(first: Setting, works: bool) -> list[str]:
    """Where attacks fail without a defense, what they left of defended updates says nothing."""
    if works or first.tried is None:
        return []
    return [
        f"without a defense, {first.tried.by} leaves {_written(first.tried.above)} dB above the mean image: the "
        "attacks tried rebuild nothing here, and arms that they alone were tried on have no part in this answer."
    ]


def _beside(settings: Sequence[Setting]) -> list[str]:
    """What a model is worth that no client had a part in: where it is worth as much, no F1 tells defenses apart."""
    said = []
    for each in settings:
        if each.worth is not None and each.arm in CONTROLS:
            adds = each.f1_lost is not None and against(each.f1_lost, 0.0) == "missed"
            so = (
                "what clients add is counted from there"
                if adds
                else "that clients add to it is not shown, so F1 says little"
            )
            said.append(f"{each.arm}, with all public labels: F1 {plain(with_interval(each.worth.f1))}: {so}.")
    return said


def _added(settings: Sequence[Setting]) -> list[str]:
    """What knows something that the reading network does not: no defense, controls, and arms that may hide images."""
    asked = [settings[0], *(each for each in settings[1:] if not (each.left and each.left.too_much))]
    known = [(each.arm, both.auroc_added) for each in asked if (both := each.together) and both.auroc_added]
    clear = {arm: added for arm, added in known if added.clear() and added.mean > 0}
    others = [arm for arm, _ in known if arm not in clear]
    said = [f"by {arm} {_written(_hundredfold(added))}" for arm, added in clear.items()]
    said += [f"by {listed(others)} not shown" if clear else "not shown of any arm"] if others else []
    points = "points that the reading network's AUROC is raised by, where it and an arm's model answer together"
    return [f"{points}: {', '.join(said)}."] if known else []


def _together(settings: Sequence[Setting]) -> list[str]:
    """What those cost that hide the images by both bars, where the reading network answers too."""
    lost = {each.arm: each.together.f1_lost for each in settings if each.hides and each.together}
    said = [
        f"{arm} {_written(_hundredfold(own))} points ({against(own, F1_LOST)})"
        for arm, own in lost.items()
        if own is not None
    ]
    return [f"where both answer, macro F1 lost to no defense beside the same network: {listed(said)}."] if said else []


def forecast_sentence(name: str, tasks: Mapping[str, int], seconds: Mapping[str, float], processes: int) -> str:
    """What is still to be computed, and for how long; seconds are of one process.

    >>> forecast_sentence("faces", {"training": 2, "attack": 9}, {"training": 3600.0, "attack": 180.0}, 2)
    'faces: about 32 min on 2 processes: 2 trainings (30 min) and 9 attacks (90 s).'
    >>> forecast_sentence("faces", {"bound": 1}, {"bound": 180.0}, 1)
    'faces: about 3 min on 1 process: 1 worst case (3 min).'
    """
    if not tasks:
        return f"{name}: everything is there."
    parts = [f"{_tasks(kind, count)} ({duration(seconds[kind] / processes)})" for kind, count in tasks.items()]
    whole, on = duration(sum(seconds.values()) / processes), "1 process" if processes == 1 else f"{processes} processes"
    return f"{name}: about {whole} on {on}: {listed(parts)}."


def _tasks(kind: str, count: int) -> str:
    return counted(count, TASKS.get(kind, kind))

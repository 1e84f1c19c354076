"""Whether what a page stands on was computed at once, in words."""

from __future__ import annotations

from shadow_defense.report.kit.formatting import counted, listed
from shadow_defense.report.records.scores import Header


def origin_sentences(record: Header) -> list[str]:
    """Which results are of other days or other versions than the record itself; none where all are of one piece."""
    sentences = []
    days = [task.created[:10] for task in record.tasks if task.created[:10] != record.created]
    if days:
        when = min(days) if len(set(days)) == 1 else f"from {min(days)} to {max(days)}"
        sentences.append(f"{_of(len(days), record)} older or newer than this page: computed {when}.")
    others = [
        [f"{name} {version}" for name, version in task.versions.items() if record.versions.get(name) != version]
        for task in record.tasks
    ]
    named = dict.fromkeys(version for versions in others for version in versions)
    if named:
        sentences.append(
            f"{_of(sum(map(bool, others)), record)} of other versions than this page: {listed(list(named))}."
        )
    return sentences


def _of(count: int, record: Header) -> str:
    return f"{counted(count, 'result')} of {len(record.tasks)} {'is' if count == 1 else 'are'}"

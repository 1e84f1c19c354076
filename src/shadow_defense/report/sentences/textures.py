"""Which texture keeps most of a model's worth at a target, in words."""

from __future__ import annotations

from collections.abc import Mapping

from shadow_defense.report.records.textures import TexturesRecord


def textures_verdict(record: TexturesRecord) -> tuple[str, ...]:
    """Of those that meet the target at their weakest the one of the highest macro F1, and what clean images give."""
    meeting = [row for row in record.rows if row.weakest]
    if not meeting:
        return (f"No texture leaves {record.target} at most, at any strength.",)
    best = max(meeting, key=lambda row: row.worth["f1"] or 0.0)
    others = ", ".join(f"{row.arm} {_f1(row.worth)}" for row in meeting if row is not best)
    return (
        f"At {record.target}, {best.arm} keeps most: a macro F1 of {_f1(best.worth)}, where clean images give "
        f"{_f1(record.clean)}." + (f" The others: {others}." if others else ""),
        f"It leaves {best.leaks['psnr']:.2f} dB above the mean image, and {best.leaks['linkage']:.1%} are found first.",
    )


def _f1(worth: Mapping[str, float | None]) -> str:
    return f"{worth['f1'] or 0.0:.3f}"

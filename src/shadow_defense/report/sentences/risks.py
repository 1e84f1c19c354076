"""What the risks' numbers say of their claims."""

from __future__ import annotations

from shadow_defense.report.kit.formatting import number
from shadow_defense.report.records.risks import Finding

OUTCOMES = {
    "borne out": "The 95 % interval lies on the claim's side.",
    "not clear": "The 95 % interval includes what would be found if the claim were wrong, or there is no interval.",
    "contradicted": "The 95 % interval lies on the other side.",
}


def outcome_sentence(finding: Finding) -> str:
    """What the number means for the claim."""
    return f"The claim is {'not clear from this' if finding.outcome == 'not clear' else finding.outcome}."


def number_text(finding: Finding) -> str:
    """The finding's number with its interval and unit, and what is behind it.

    >>> from shadow_defense.metrics.confidence import Estimate
    >>> texts, lists = ("sentence", "quantity", "outcome"), ("charts", "columns", "rows")
    >>> empty = {**dict.fromkeys(texts, ""), **dict.fromkeys(lists, ())}
    >>> value = Estimate(2.0, (1.5, 2.5), 8)
    >>> text = number_text(Finding(value=value, values_are="images", unit="dB", digits=1, **empty))
    >>> text.replace(chr(160), " ")
    '2.0 dB, 95 % interval 1.5 to 2.5 (8 images)'
    """
    value, digits = finding.value, finding.digits
    mean, over = number(value.mean, digits, finding.unit), f"({value.count} {finding.values_are})"
    if value.interval is None:
        return f"{mean}, no interval {over}"
    low, high = (number(end, digits) for end in value.interval)
    return f"{mean}, 95 % interval {low} to {high} {over}"

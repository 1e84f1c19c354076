"""The report: one HTML file that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow_defense.files import write_text
from shadow_defense.report.content import Content
from shadow_defense.report.kit.charts import Style, legend_key, styles
from shadow_defense.report.kit.formatting import METRICS, listed
from shadow_defense.report.kit.pictures import SIGNED_TABLE, colour_bar, heat_bar
from shadow_defense.report.kit.template import nested_text, render_template
from shadow_defense.report.pages.run_charts import Panel, curve_panels, score_panels
from shadow_defense.report.pages.run_pictures import attack_card, choices, noise_cards
from shadow_defense.report.pages.run_tables import (
    BASELINE,
    UTILITY_EXPLANATIONS,
    MetricTable,
    metric_table,
    shared_batch_norm,
    utility_table,
)


@dataclass(frozen=True)
class AttackResults:
    """All tables of one attack: ``tables[0]`` is shown open, with its charts; the others are folded."""

    name: str
    charts: tuple[Panel, ...]
    tables: tuple[MetricTable, ...]


def render_page(content: Content) -> str:
    """The whole report as one HTML document with its pictures, charts, style and script inside.

    All text from ``content`` is escaped; a content security policy in the page forbids loading anything.

    Raises:
        DataError: when an image has neither one nor three channels.
    """
    return render_template("pages/run.html.j2", _context(content))


def write_report(path: Path, content: Content) -> None:
    """Write :func:`render_page` to ``path``, whole or not at all."""
    write_text(path, render_page(content))


def _context(content: Content) -> dict[str, Any]:
    results = content.results
    arms = results["arms"]
    arm_styles = dict(zip(arms, styles(len(arms)), strict=True))
    attack_cards = [attack_card(exhibit) for exhibit in content.exhibits]
    explained = noise_cards(content.exhibits)
    return {
        "record": results,
        "seeds": [results["seed"]],
        "summary": summary(results),
        "attack_cards": attack_cards,
        "attack_choices": choices([card.place for card in attack_cards]),
        "noise_cards": explained,
        "noise_choices": choices([card.place for card in explained]),
        "heat_bar": heat_bar(),
        "noise_bar": colour_bar(SIGNED_TABLE),
        "attacks": _attack_results(results["tables"], arm_styles),
        "metrics": METRICS.values(),
        "baseline": BASELINE,
        "utility": utility_table(arms, results["data"]["classes"]),
        "utility_explanations": UTILITY_EXPLANATIONS,
        "shared_batch_norm": shared_batch_norm(arms),
        "curves": curve_panels(arms, arm_styles),
        "legend": [(name, legend_key(f"key{index}", style)) for index, (name, style) in enumerate(arm_styles.items())],
        "config": nested_text(results["config"]),
        "options": {name: nested_text(arm["options"]) for name, arm in arms.items() if arm["options"]},
    }


def _attack_results(tables: Sequence[Mapping[str, Any]], arm_styles: Mapping[str, Style]) -> list[AttackResults]:
    attacks: dict[str, list[Mapping[str, Any]]] = {}
    for table in tables:
        attacks.setdefault(table["attack"], []).append(table)
    result = []
    for index, (name, own) in enumerate(attacks.items()):
        # What all rounds say together comes first; sorting keeps the order of the others.
        ordered = sorted(own, key=lambda table: table["round"] is not None)
        charts = score_panels(f"scores{index}", ordered[0], arm_styles)
        result.append(AttackResults(name, tuple(charts), tuple(metric_table(table) for table in ordered)))
    return result


def summary(results: Mapping[str, Any]) -> str:
    """What was done, in two or three plain sentences.

    >>> print(summary({
    ...     "data": {"name": "faces", "clients": {"a": {}}, "image_size": [25, 25]},
    ...     "arms": {"none": {"history": [{}]}, "shadow": {"history": [{}]}},
    ...     "tables": [{"attack": "inverting gradients", "round": 1}],
    ... }))
    1 client trained one model together on faces (25 × 25 pixels) for 1 round, once for each of 2 arms: none, shadow. \
An attacker then tried to rebuild the clients' images from nothing but the updates they sent in round 1, by \
inverting gradients. This page shows how close it came, and what each defense cost the model.
    """
    data, arms = results["data"], results["arms"]
    rounds = max((len(arm["history"]) for arm in arms.values()), default=0)
    attacks = list(dict.fromkeys(table["attack"] for table in results["tables"]))
    attacked = sorted({table["round"] for table in results["tables"] if table["round"] is not None})
    size = " × ".join(str(side) for side in data["image_size"])
    first = (
        f"{_count(len(data['clients']), 'client')} trained one model together on {data['name']} ({size} pixels) for "
        f"{_count(rounds, 'round')}, once for each of {_count(len(arms), 'arm')}: {', '.join(arms)}."
    )
    if not attacks:
        return f"{first} No attack was run: this page shows what each defense cost the model."
    when = f" in round{'s' if len(attacked) > 1 else ''} {listed(attacked)}" if attacked else ""
    return (
        f"{first} An attacker then tried to rebuild the clients' images from nothing but the updates they sent{when}, "
        f"by {listed(attacks)}. This page shows how close it came, and what each defense cost the model."
    )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""The tables of a comparison as GitHub Markdown, for docs/results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shadow_defense.report.kit.formatting import MINUS, MISSING
from shadow_defense.report.pages.compare_tables import (
    WHOLE,
    epsilon,
    front_of,
    metric_cell,
    metric_column,
    ratio,
    utility_cell,
    when,
)
from shadow_defense.report.pages.run_tables import Cell

_REGIONS = ("psnr_inside", "psnr_outside")

# Where Markdown and HTML would read markup; a bar ends a cell even in code.
_MARKUP = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#&~$"})


def markdown_tables(comparison: Mapping[str, Any]) -> str:
    """What was compared, by which command, on which data, with which versions, when; then every table.

    Each mean stands with ± half its 95 % interval; a difference to the first defense follows in brackets, with a
    star where its interval leaves out zero.
    """
    parts = [f"# {_text(comparison['title'])}", f"```\n{_code(comparison['command'])}\n```", *_setup(comparison)]
    if comparison["verdict"]:
        parts += ["## What the numbers say", _bullets(comparison["verdict"])]
    parts.append(
        "Mean ± half the 95 % interval over images and seeds. In brackets the difference to "
        f"{_text(_first(comparison))}, paired by image and seed, with a star where its interval leaves out zero. "
        "Lower PSNR and SSIM and higher LPIPS are better protected. Front: on the Pareto front of that attack's "
        "privacy-utility plane, by the means alone. Time and memory are multiples of those without defense. "
        "Epsilon is followed by its delta; it is that of the parameters sent: batch norm's statistics, where they "
        "leave (BN all or stats), are not covered. BN: which values of batch norm are shared."
    )
    for heading, tables in (("Comparison", comparison["tables"]), ("Ablations", comparison["ablations"])):
        if tables:
            parts.append(f"## {heading}")
        for table in tables:
            parts.append(f"### {_text(table['model'])}, {_text(table['attack'])}, {when(table)}")
            parts.append(_table(table, comparison, with_front=heading == "Comparison" and table["round"] is None))
    if comparison["left_out"]:
        left_out = [f"{entry['defense']} with {entry['model']}: {entry['reason']}" for entry in comparison["left_out"]]
        parts += ["## Left out", _bullets(left_out)]
    if comparison["failures"]:
        failed = [f"{failure['cell']}: {failure['error']}" for failure in comparison["failures"]]
        parts += ["## Failed", _bullets(failed)]
    if comparison["notes"]:
        parts += ["## Notes", _bullets(comparison["notes"])]
    return "\n\n".join(parts) + "\n"


def _first(comparison: Mapping[str, Any]) -> str:
    return next(iter(comparison["defenses"]), "the first defense")


def _setup(comparison: Mapping[str, Any]) -> list[str]:
    data = comparison["data"]
    height, width = data["image_size"]
    sizes = ", ".join(str(client["train"]) for client in data["clients"].values())
    hashes = "; ".join(f"seed {seed} `{_code(value)}`" for seed, value in data["sha256"].items())
    versions = ", ".join(f"{name} {version}" for name, version in comparison["versions"].items())
    lines = [
        f"Date: {_text(comparison['created'])}.",
        f"Data: {_text(data['name'])}, {height} x {width} px, {data['channels']} channel(s); training images by "
        f"client: {sizes}; {data['public']} public, {data['test']} test images.",
        f"SHA-256 of the data: {hashes}.",
        f"Seeds: {', '.join(str(seed) for seed in comparison['seeds'])}.",
        f"Versions: {_text(versions)}.",
    ]
    for name, settings in comparison["models"].items():
        lines.append(f"Model {_text(name)}: `{_settings(settings)}`.")
    for name, attack in comparison["attacks"].items():
        rounds = ", ".join(str(round) for round in attack["rounds"])
        lines.append(
            f"Attack {_text(name)}: {_text(attack['attack'])}, rounds {rounds}, {len(attack['clients'])} client(s), "
            f"`{_settings(attack['settings'])}`."
        )
    return [_bullets(lines, escaped=True)]


def _settings(settings: Mapping[str, Any]) -> str:
    return _code(json.dumps(settings, ensure_ascii=False))


def _table(table: Mapping[str, Any], comparison: Mapping[str, Any], *, with_front: bool) -> str:
    front = front_of(comparison, table["model"], table["attack"]) if with_front else frozenset()
    keys = (*WHOLE, *_REGIONS)
    headings = ["Defense", *(metric_column(key).title for key in keys), "F1 macro", "Time", "Memory", "Epsilon", "BN"]
    headings += ["Images", "Seeds", *(["Front"] if with_front else [])]
    lines = [_line(headings), _line(["---", *["---:"] * (len(headings) - 1)])]
    for row in table["rows"]:
        defense = comparison["defenses"].get(row["defense"])
        cells = [
            _text(row["defense"]),
            *(_cell(metric_cell(row, key)) for key in keys),
            _cell(utility_cell(row)),
            ratio(row, "time"),
            ratio(row, "memory"),
            epsilon(row),
            MISSING if defense is None else _text(defense["share_bn"]),
            str(row["images"]),
            str(row["seeds"]),
            *([("yes" if row["defense"] in front else "")] if with_front else []),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    if not cell.difference:
        return cell.value
    star = "*" if cell.meaning.startswith("clearly") else ""
    return f"{cell.value} ({cell.difference}){_text(star)}"


def _line(cells: Sequence[str]) -> str:
    # Plain signs and spaces, so that the file is searched and compared as it is typed.
    return f"| {' | '.join(cells)} |".replace(MINUS, "-").replace("\N{NO-BREAK SPACE}", " ").replace(MISSING, "-")


def _bullets(lines: Sequence[str], *, escaped: bool = False) -> str:
    return "\n".join(f"- {line if escaped else _text(line)}" for line in lines)


def _text(text: str) -> str:
    """Text in one line without markup."""
    return " ".join(str(text).split()).translate(_MARKUP)


def _code(text: str) -> str:
    """Text for a code span or block, which a grave accent would end."""
    return " ".join(str(text).split()).replace("`", "'")

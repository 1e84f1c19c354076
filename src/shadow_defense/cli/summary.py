"""The results in one table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

COLUMNS = (("psnr_whole", "PSNR dB", ".1f"), ("ssim_whole", "SSIM", ".2f"), ("lpips_whole", "LPIPS", ".2f"))


def _cell(value: Mapping[str, Any] | None, form: str) -> str:
    if value is None:
        return "-"
    interval = value["interval"]
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:{form}}"
    return f"{value['mean']:{form}}{half}"


def summary_table(results: Mapping[str, Any]) -> Table:
    """Per attack and arm: what the attacker reaches (mean ± half the 95 % interval) and what the task reaches."""
    table = Table(title="What the attacker rebuilds, and what the task reaches")
    for heading in ("attack", "arm"):
        table.add_column(heading)
    for heading in (*(heading for _, heading, _ in COLUMNS), "macro F1"):
        table.add_column(heading, justify="right")
    for entry in results["tables"]:
        if entry["round"] is not None:
            continue
        for row in entry["rows"]:
            cells = [_cell(row["metrics"].get(column), form) for column, _, form in COLUMNS]
            arm = results["arms"].get(row["arm"])
            table.add_row(entry["attack"], row["arm"], *cells, f"{arm['test']['f1_macro']:.3f}" if arm else "-")
        table.add_section()
    return table

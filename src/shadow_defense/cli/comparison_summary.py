"""A comparison in short tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from shadow_defense.cli.printing import interval_cell

WIDTH = 100
"""Columns of the terminal that a table takes at most."""

COLUMNS = (("ssim_whole", "SSIM", ".2f"), ("psnr_whole", "PSNR dB", ".1f"))


def comparison_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """For each model and attack, over all attacked rounds: what leaks, macro F1, time, and who is on the front.

    Means with ± half the 95 % interval; time is a multiple of that without defense.
    """
    fronts = {
        (plane["model"], plane["attack"], point["defense"])
        for plane in comparison["planes"]
        for point in plane["points"]
        if point["on_front"]
    }
    return [_table(table, fronts) for table in comparison["tables"] if table["round"] is None]


def _table(entry: Mapping[str, Any], fronts: set[tuple[str, str, str]]) -> Table:
    place = (entry["model"], entry["attack"])
    table = Table(title=Text(f"{', '.join(place)} (* on the Pareto front)"), title_justify="left", pad_edge=False)
    table.add_column("defense", max_width=WIDTH - 62, overflow="fold")
    for heading in (*(heading for _, heading, _ in COLUMNS), "macro F1", "time", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in entry["rows"]:
        cells = [interval_cell(row["metrics"].get(key), form) for key, _, form in COLUMNS]
        time = (row["cost"] or {}).get("time")
        table.add_row(
            # Text, not markup: names are the user's and may hold brackets.
            Text(row["defense"]),
            *cells,
            interval_cell((row["utility"] or {}).get("f1_macro"), ".3f"),
            "-" if time is None else f"{time:.2f}x",
            "*" if (*place, row["defense"]) in fronts else "",
        )
    return table

"""The results in one table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from shadow_defense.cli.printing import interval_cell

COLUMNS = (("psnr_whole", "PSNR dB", ".1f"), ("ssim_whole", "SSIM", ".2f"), ("lpips_whole", "LPIPS", ".2f"))


def summary_tables(results: Mapping[str, Any]) -> list[Table]:
    """For each attack: what it reaches in each arm (mean ± half the 95 % interval), and what the task reaches."""
    tables = []
    for entry in results["tables"]:
        if entry["round"] is not None:
            continue
        table = Table(title=Text(f"What {entry['attack']} rebuilds, and what the task reaches"), title_justify="left")
        table.add_column("arm")
        for heading in (*(heading for _, heading, _ in COLUMNS), "macro F1"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in entry["rows"]:
            cells = [interval_cell(row["metrics"].get(column), form) for column, _, form in COLUMNS]
            arm = results["arms"].get(row["arm"])
            table.add_row(Text(row["arm"]), *cells, f"{arm['test']['f1_macro']:.3f}" if arm else "-")
        tables.append(table)
    return tables

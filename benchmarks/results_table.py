"""The numbers of a finished run as Markdown, for docs/results.

    .venv/bin/python benchmarks/results_table.py runs/pneumoniamnist [more runs]

Prints what decides the numbers (data, hash, seed, versions, date), then per attack and round: mean ± half the 95 %
interval over images, and the difference to the first arm, paired by image.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadow_defense.files import read_json

COLUMNS = {
    "psnr_whole": ("PSNR dB", ".1f"),
    "ssim_whole": ("SSIM", ".2f"),
    "lpips_whole": ("LPIPS", ".2f"),
    "psnr_inside": ("PSNR inside", ".1f"),
    "psnr_outside": ("PSNR outside", ".1f"),
}


def cell(value: Mapping[str, Any] | None, form: str, sign: str = "") -> str:
    if value is None:
        return "-"
    half = "" if value["low"] is None else f" ± {(value['high'] - value['low']) / 2:{form}}"
    return f"{value['mean']:{sign}{form}}{half}"


def print_table(table: Mapping[str, Any]) -> None:
    when = "all attacked rounds" if table["round"] is None else f"round {table['round']}"
    print(f"\n{table['attack']}, {when}, {table['rows'][0]['images']} images:\n")
    headings = [heading for heading, _ in COLUMNS.values()]
    print("| arm | " + " | ".join([*headings, "PSNR to first arm", "macro F1"]) + " |")
    print("|---" * (len(headings) + 3) + "|")
    for row in table["rows"]:
        cells = [cell(row["metrics"].get(column), form) for column, (_, form) in COLUMNS.items()]
        difference = cell(row["difference"].get("psnr_whole"), ".1f", sign="+")
        utility = cell(row["utility"].get("f1_macro"), ".3f")
        print("| " + " | ".join([row["arm"], *cells, difference, utility]) + " |")


def print_run(folder: Path) -> None:
    results = read_json(folder / "results.json")
    data, config = results["data"], results["config"]
    training = config["training"]
    height, width = data["image_size"]
    model = " ".join(str(config["model"][key]) for key in ("name", "normalisation", "activation"))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    print(f"## {results['title']}\n")
    sizes = ", ".join(str(client["train"]) for client in data["clients"].values())
    print(
        f"Data: {data['name']}, {height} x {width} px, {data['channels']} channel(s), sha256 `{data['sha256'][:16]}`;"
    )
    print(f"training images by client: {sizes}; {data['public']} public, {data['test']} test images.")
    print(f"Model: {model}; {training['batch_norm']} mode, {training['rounds']} rounds.")
    print(f"Seed {results['seed']}; {versions}; {results['created']}.")
    for table in results["tables"]:
        print_table(table)
    print()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print_run(Path(argument))

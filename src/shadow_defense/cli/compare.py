"""``shadow-defense compare``: defenses against attacks, over models and seeds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None, flag: str) -> list[int] | None:
    from shadow_defense.errors import ConfigError

    names = _names(text)
    if names is None:
        return None
    if not names or not all(name.isdecimal() for name in names):
        raise ConfigError(f"{flag} {text}: expected whole numbers with commas between them, such as {flag} 1,5")
    return [int(name) for name in names]


def compare(
    grid: Annotated[str, typer.Argument(help="A comparison that comes with the package, a YAML file, or a run.")],
    defenses: Annotated[
        str | None, typer.Option(help="Of the grid or the registry, with commas; a preset after a colon: noise:strong.")
    ] = None,
    attacks: Annotated[str | None, typer.Option(help="Of the grid or the registry, with commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="With commas, such as 0,1,2.")] = None,
    rounds: Annotated[str | None, typer.Option(help="Rounds attacked, from 1, with commas.")] = None,
    clients: Annotated[str | None, typer.Option(help="Clients attacked, with commas.")] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Also Shadow Defense without each of its parts.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default comparisons/<name of the grid>.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as training.rounds=4."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """All defenses through the same training and the same attacks: tables, and the plane of privacy and utility.

    Goes on where it stopped; a changed setting computes anew only what depends on it.
    """
    from contextlib import nullcontext

    from rich.console import Console

    from shadow_defense.cli.comparison_summary import comparison_tables
    from shadow_defense.cli.progress import BarProgress
    from shadow_defense.experiment.comparison.reading import load_grid
    from shadow_defense.experiment.comparison.reporting import page_path, write_results
    from shadow_defense.experiment.comparison.running import Comparison
    from shadow_defense.progress import Progress

    settings = load_grid(
        grid,
        overrides or (),
        defenses=_names(defenses),
        attacks=_names(attacks),
        seeds=_numbers(seeds, "--seeds"),
        rounds=_numbers(rounds, "--rounds"),
        clients=_names(clients),
        ablations=ablations,
    )
    comparison = Comparison(out or Path("comparisons") / Path(grid).stem, settings)
    with nullcontext(Progress()) if quiet else BarProgress(Console(stderr=True)) as progress:
        comparison.run(progress)
        results = write_results(comparison, shlex.join(["shadow-defense", *sys.argv[1:]]), progress)
    if not quiet:
        console = Console()
        for table in comparison_tables(results):
            console.print(table)
        for sentence in results["verdict"]:
            console.print(f"  {sentence}", highlight=False, markup=False)
        console.print(f"\nOpen {page_path(comparison.folder).resolve().as_uri()}", highlight=False, soft_wrap=True)
    for cell, error in comparison.failures.items():
        typer.echo(f"failed: {cell}: {error}", err=True)
    if comparison.failures:
        typer.echo(
            f"{len(comparison.failures)} of the cells failed; the others stand. The same command tries them again.",
            err=True,
        )
        raise typer.Exit(1)

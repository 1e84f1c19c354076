"""``shadow-defense compare``: defenses against attacks, over models and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shadow_defense.cli.options import Engine, Overrides, Quiet, Seeds, seed_list, typed, with_choices


def compare(
    grid: Annotated[str, typer.Argument(help="A comparison that comes with the package, a YAML file, or a run.")],
    defenses: Annotated[
        str | None, typer.Option(help="Of the grid or the registry, with commas; a preset after a colon: noise:strong.")
    ] = None,
    attacks: Annotated[str | None, typer.Option(help="Of the grid or the registry, with commas.")] = None,
    seeds: Seeds = None,
    rounds: Annotated[str | None, typer.Option(help="Rounds attacked, from 1, with commas.")] = None,
    clients: Annotated[str | None, typer.Option(help="Clients attacked, with commas.")] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Also Shadow Defense without each of its parts.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default runs/compare-<name of the grid>.")] = None,
    overrides: Overrides = None,
    engine: Engine = None,
    quiet: Quiet = False,
) -> None:
    """All defenses through the same training and the same attacks: tables, and the plane of privacy and utility.

    Goes on where it stopped; a changed setting computes anew only what depends on it.
    """
    from shadow_defense.cli.comma_lists import names, whole_numbers
    from shadow_defense.experiment.plans.comparison.reading import load_grid

    # Before all else is imported: what is mistyped is answered at once.
    settings = load_grid(
        grid,
        with_choices(overrides, engine),
        defenses=names(defenses),
        attacks=names(attacks),
        seeds=seed_list(seeds),
        rounds=whole_numbers(rounds, "--rounds"),
        clients=names(clients),
        ablations=ablations,
    )
    from rich.console import Console

    from shadow_defense.cli.printing import LINE_LIMIT, print_page, print_sentences
    from shadow_defense.cli.progress import working
    from shadow_defense.errors import shown
    from shadow_defense.experiment.plans.comparison.gathering import page_path, write_results
    from shadow_defense.experiment.plans.comparison.plan import Comparison
    from shadow_defense.report.pages.compare import comparison_summary

    folder = out or Path("runs") / f"compare-{Path(grid).stem}"
    with working(folder, quiet) as progress:
        comparison = Comparison(folder, settings)
        comparison.run(progress)
        record = write_results(comparison, typed())
    if not quiet:
        console = Console()
        for table in comparison_summary(record):
            console.print(table.terminal())
        print_sentences(console, record.verdict)
        print_page(console, page_path(comparison.folder))
    for cell, error in comparison.failures.items():
        typer.echo(shown(f"failed: {cell}: {error}", LINE_LIMIT), err=True)
    if comparison.failures:
        typer.echo(
            f"{len(comparison.failures)} of the cells failed; the others stand. The same command tries them again.",
            err=True,
        )
        raise typer.Exit(1)

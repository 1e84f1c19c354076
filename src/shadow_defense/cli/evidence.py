"""``shadow-defense evidence``: a study of a data set that says which setting of a defense will do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shadow_defense.cli.options import Overrides, Quiet, Seeds, seed_list, typed


def evidence(
    sets: Annotated[
        list[str] | None,
        typer.Argument(help="pneumoniamnist, kermany, retinamnist, breastmnist, or a YAML file; none: --data alone."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Its images: an .npz, a CSV, class folders; or a folder with <set>.npz for each set."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The whole grid: every model, attack and strength.")] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Say how long it takes, and no more.")] = False,
    stop_after: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="End this piece; the same command goes on.", min=0.01)
    ] = None,
    seeds: Seeds = None,
    out: Annotated[Path, typer.Option(help="A folder for each set is made in it.")] = Path("runs"),
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Is there a setting with which a model loses little and images stay hidden? One page a data set.

    Says first how long it takes. Stopped, the same command goes on; results are written of what is there.
    """
    from shadow_defense.experiment.plans.evidence.reading import load_study

    # Before all else is imported: what is mistyped is answered at once.
    names: list[str | None] = [*sets] if sets else [None]
    studies = [load_study(name, data, overrides or (), seeds=seed_list(seeds), full=full) for name in names]
    from rich.console import Console

    from shadow_defense.cli.printing import LINE_LIMIT, print_page, print_sentences
    from shadow_defense.cli.progress import working
    from shadow_defense.errors import shown
    from shadow_defense.experiment.plans.evidence.gathering import page_path, write_evidence
    from shadow_defense.experiment.plans.evidence.plan import Evidence, Forecast
    from shadow_defense.report.sentences.evidence import forecast_sentence

    console, command = Console(), typed()
    for name, study in studies:
        folder = out / f"evidence-{name}{'-full' if full else ''}"

        def tell(rest: Forecast, name: str = name) -> None:
            if not quiet:
                print_sentences(console, [forecast_sentence(name, rest.tasks, rest.seconds, rest.processes)])

        with working(folder, quiet) as progress:
            plan = Evidence(folder, study)
            if forecast:
                tell(plan.forecast(progress))
                continue
            plan.run_for(None if stop_after is None else 60 * stop_after, tell, progress)
            record = write_evidence(plan, name, command)
        if not quiet:
            print_sentences(console, record.verdict)
            print_page(console, page_path(folder, name))
        for cell, error in plan.failures.items():
            typer.echo(shown(f"failed: {cell}: {error}", LINE_LIMIT), err=True)

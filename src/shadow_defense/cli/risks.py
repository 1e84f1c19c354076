"""The command that measures the seven risks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def risks(
    base: Annotated[
        str, typer.Argument(help="A preset or a YAML file with the data, model, generator, training and attack.")
    ] = "risks",
    only: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Some of the risks, such as 2,5.")] = None,
    out: Annotated[Path, typer.Option(help="Where the sub-runs, risks.json and risks.html are written.")] = Path(
        "runs/risks"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many, from the base's own upwards.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the base.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the chosen risks' sub-runs and begin anew.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Measure the seven risks that the article names, each with a number, its interval and a figure."""
    from rich.console import Console

    from shadow_defense.cli.printing import print_page, print_sentences
    from shadow_defense.cli.progress import progress_unless
    from shadow_defense.config import load_config
    from shadow_defense.errors import shown
    from shadow_defense.experiment.plans.risks.build import chosen_risks
    from shadow_defense.experiment.plans.risks.running import PAGE, run_risks
    from shadow_defense.folder_lock import holding

    chosen, config = chosen_risks(only), load_config(base, overrides or ())
    command = ["shadow-defense", "risks", base, "--out", str(out)]
    command += ["--seeds", str(seeds)] if seeds != 1 else []
    command += [part for override in overrides or () for part in ("--set", override)]
    console = Console()
    with holding(out), progress_unless(quiet) as progress:
        for risk, finding in run_risks(
            config, chosen, out, seeds=seeds, restart=restart, command=shlex.join(command), progress=progress
        ):
            if not quiet:
                heading = f"{risk.number}. {risk.name}: {finding.outcome}"
                console.print(f"\n{shown(heading)}", style="bold", highlight=False, markup=False)
                print_sentences(console, [finding.sentence])
    if not quiet:
        print_page(console, out / PAGE)

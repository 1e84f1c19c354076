"""The command that measures the seven risks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from shadow_defense.cli.options import Engine, Overrides, Quiet, Seeds, seed_list, with_choices


def risks(
    base: Annotated[
        str, typer.Argument(help="A preset or a YAML file with the data, model, generator, training and attack.")
    ] = "risks",
    only: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Some of the risks, such as 2,5.")] = None,
    out: Annotated[Path, typer.Option(help="Where results, risks.json and risks.html are written.")] = Path(
        "runs/risks"
    ),
    seeds: Seeds = None,
    overrides: Overrides = None,
    engine: Engine = None,
    quiet: Quiet = False,
) -> None:
    """Measure the seven risks that the article names, each with a number, its interval and a figure.

    Without --seeds, with the base's own. Stopped, the same command goes on.
    """
    from rich.console import Console

    from shadow_defense.cli.printing import print_page, print_sentences
    from shadow_defense.cli.progress import working
    from shadow_defense.config import load_config
    from shadow_defense.errors import shown
    from shadow_defense.experiment.plans.risks.names import chosen_numbers

    # Before torch is imported: what is mistyped is answered at once.
    numbers, chosen_seeds = chosen_numbers(only), seed_list(seeds)
    config = load_config(base, with_choices(overrides, engine), files=True)
    from shadow_defense.experiment.plans.risks.running import PAGE, RISKS, run_risks

    chosen = [RISKS[number] for number in numbers]
    # Without --only: the page holds what several calls found.
    command = ["shadow-defense", "risks", base, "--out", str(out)]
    command += [] if seeds is None else ["--seeds", seeds]
    command += [part for override in with_choices(overrides, engine) for part in ("--set", override)]
    console = Console()
    with working(out, quiet) as progress:
        for risk in run_risks(config, chosen, out, seeds=chosen_seeds, command=shlex.join(command), progress=progress):
            if not quiet:
                heading = f"{risk.number}. {risk.name}: {risk.outcome}"
                console.print(f"\n{shown(heading)}", style="bold", highlight=False, markup=False)
                print_sentences(console, [risk.sentence])
    if not quiet:
        print_page(console, out / PAGE)

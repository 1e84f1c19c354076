"""The command that looks for the weakest Shadow setting that an attack does not pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadow_defense.cli.options import Engine, Model, Overrides, Quiet, Seeds, seed_list, typed, with_choices

if TYPE_CHECKING:
    from shadow_defense.report.records.calibration import CalibrationRecord, Strength


def calibrate(
    config: Annotated[str, typer.Argument(help="A preset (see `config show`) or a YAML file.")],
    target: Annotated[
        str, typer.Option(metavar="METRIC=VALUE", help="What leakage must stay below: ssim, psnr (dB) or rdlv.")
    ] = "rdlv=0.25",
    attack: Annotated[
        str | None, typer.Option(help="An attack of the configuration; default the first of them.")
    ] = None,
    schedules: Annotated[
        str, typer.Option(help="Schedules to calibrate: growing, constant, decaying; a comma between two.")
    ] = "growing,constant",
    tolerance: Annotated[float, typer.Option(help="Stop when the strength is known this closely.")] = 0.05,
    most: Annotated[float, typer.Option(help="Greatest strength tried.")] = 3.0,
    analytic: Annotated[
        bool,
        typer.Option(
            "--analytic",
            help="For images protected once: each texture's weakest strength, by linear removers on the public images "
            "alone, and what a model trained on it is worth; target rdlv, psnr (dB above the mean image) or linkage.",
        ),
    ] = False,
    seeds: Seeds = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/calibrate-<preset or file name>.")] = None,
    overrides: Overrides = None,
    engine: Engine = None,
    model: Model = None,
    quiet: Quiet = False,
) -> None:
    """The weakest Shadow strength whose measured leakage stays below a target, and what it costs in F1.

    Bisection on short trainings: each candidate is trained and attacked with every seed; without --seeds, with the
    configuration's own and the next. Writes calibration.json and calibration.html; stopped, the same command goes on.
    """
    from rich.console import Console

    from shadow_defense.cli.progress import working
    from shadow_defense.config import load_config
    from shadow_defense.errors import ConfigError
    from shadow_defense.metrics.limit import TARGET_RANGES, parse_limit

    if analytic:
        if attack is not None or seeds is not None or engine is not None:
            raise ConfigError("--analytic attacks no federation: leave --attack, --seeds and --engine out")
        _analytic(config, target, with_choices(overrides, model=model), out, quiet)
        return
    # Before torch is imported: what is mistyped is answered at once.
    aimed = parse_limit(target, TARGET_RANGES, "--target")
    chosen_seeds = seed_list(seeds)
    loaded = load_config(config, with_choices(overrides, engine, model), files=True)
    from shadow_defense.experiment.plans.calibration.bisection import CalibrationSettings
    from shadow_defense.experiment.plans.calibration.results import run_calibration
    from shadow_defense.validation import validated

    values: dict[str, Any] = {"target": aimed, "attack": attack, "tolerance": tolerance}
    values |= {"most": most, "seeds": chosen_seeds}
    values["schedules"] = [name.strip() for name in schedules.split(",")]
    settings = validated(CalibrationSettings, values, ConfigError)
    folder = out or Path("runs") / f"calibrate-{Path(config).stem}"
    terminal = Console(stderr=True)

    def on_measurement(schedule: str, measured: Strength) -> None:
        if not quiet:
            terminal.print(_line(schedule, measured, settings.target.metric), highlight=False)

    with working(folder, quiet, terminal) as progress:
        record = run_calibration(folder, loaded, settings, progress, on_measurement)
    if not quiet:
        _summary(record, folder / "calibration.html")


def _analytic(config: str, target: str, overrides: list[str], out: Path | None, quiet: bool) -> None:
    from rich.console import Console

    from shadow_defense.cli.printing import print_page, print_sentences
    from shadow_defense.cli.progress import working
    from shadow_defense.config import load_config
    from shadow_defense.data.build import load_dataset
    from shadow_defense.devices import resolved_device
    from shadow_defense.experiment.protecting.calibrating import PAGE, Calibrating, calibrate_textures, write_textures
    from shadow_defense.experiment.protecting.weakest import parse_target
    from shadow_defense.report.pages.textures import textures_table

    aimed, loaded = parse_target(target), load_config(config, overrides)
    dataset = load_dataset(loaded.data, loaded.seed)
    folder = out or Path("runs") / f"calibrate-{Path(config).stem}"
    command = typed()
    with working(folder, quiet) as progress:
        work = Calibrating.of(dataset, aimed, loaded.seed, progress, resolved_device(loaded.device))
        record = calibrate_textures(work, f"Textures on {dataset.name}", command)
        write_textures(folder, record)
    if not quiet:
        console = Console()
        console.print(textures_table(record).terminal())
        print_sentences(console, [*record.verdict, *record.not_reached.values()])
        print_page(console, folder / PAGE)


def _line(schedule: str, measured: Strength, metric: str) -> str:
    leakage = measured.leakage[metric]
    return (
        f"{schedule} {measured.strength:g}: {metric} {leakage.mean:.3f} ({leakage.low:.3f} to {leakage.high:.3f}), "
        f"worst in round {leakage.round}; macro F1 {measured.mean_f1:.3f}"
    )


def _summary(record: CalibrationRecord, page: Path) -> None:
    from rich.console import Console

    from shadow_defense.cli.printing import print_page, print_sentences
    from shadow_defense.report.kit.template import nested_text
    from shadow_defense.report.pages.calibrate import calibration_summary

    console = Console()
    console.print(calibration_summary(record).terminal())
    print_sentences(console, record.verdict)
    if record.chosen is not None:
        console.print(f"\n{nested_text({'arms': record.chosen.arm})}", highlight=False, markup=False)
    print_page(console, page)

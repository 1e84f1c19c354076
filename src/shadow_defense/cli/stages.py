"""The commands that carry out a run, whole or by its stages. Heavy imports happen inside them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shadow_defense.cli.options import Engine, Model, Overrides, Quiet, with_choices

if TYPE_CHECKING:
    from shadow_defense.experiment.run import Run

Restart = Annotated[bool, typer.Option("--restart", help="Delete what the run directory holds and begin anew.")]
RunFolder = Annotated[Path, typer.Argument(help="A run directory.")]
StageConfig = Annotated[
    str | None, typer.Option("--config", help="Preset or YAML file, to create the run directory with.")
]

DEMO_IMAGES = {
    "faces": [],
    "chest": ["data.source=radiograph", "data.images=200", "data.split.kind=given", "data.split.sizes=null"],
    "fundus": ["data.source=fundus"],
}
"""What the demo can be shown on, and what is set for it."""


def _stage(name: str, run: Run, quiet: bool) -> None:
    from shadow_defense.cli.progress import progress_unless
    from shadow_defense.experiment.plans.run import STAGES

    with progress_unless(quiet) as progress:
        STAGES[name](run, progress)


def _run_all(
    config: str, overrides: list[str] | None, out: Path, quiet: bool, restart: bool, log: str | None = None
) -> Run:
    from shadow_defense.config import load_config
    from shadow_defense.experiment.preloading import preload

    # Before torch is imported: what is mistyped is answered at once.
    loaded = load_config(config, overrides or (), files=True)
    if loaded.workers != 0:
        preload()
    from shadow_defense.cli.progress import progress_unless
    from shadow_defense.experiment.following import following
    from shadow_defense.experiment.loggers import logger_named
    from shadow_defense.experiment.plans.run import whole_run
    from shadow_defense.experiment.run import Run
    from shadow_defense.folder_lock import holding

    on_measurement = None if log is None else logger_named(log)
    with holding(out):
        run = Run.create(out, loaded, restart=restart, check=Run.check)
        if not quiet:
            typer.echo(f"run directory: {out}")
        logged = nullcontext() if on_measurement is None else following(run, on_measurement)
        with progress_unless(quiet) as progress, logged:
            whole_run(run, progress)
    if not quiet:
        _summary(run)
    return run


def _summary(run: Run) -> None:
    from rich.console import Console

    from shadow_defense.cli.printing import print_page, print_sentences
    from shadow_defense.experiment.plans.run import read_results
    from shadow_defense.report.pages.run import run_summary

    console, record = Console(), read_results(run)
    for table in run_summary(record):
        console.print(table.terminal())
    print_sentences(console, record.verdict)
    peaks = [task.peak_megabytes for task in record.tasks if task.peak_megabytes is not None]
    if peaks:
        print_sentences(console, [f"Peak memory of a process: {max(peaks):.0f} MB."])
    print_page(console, run.report_path)


def _stage_command(
    name: str,
    folder: Path,
    config: str | None,
    overrides: list[str] | None,
    quiet: bool,
    engine: str | None = None,
) -> None:
    from shadow_defense.config import load_config
    from shadow_defense.errors import ConfigError
    from shadow_defense.experiment.folder import config_of

    if config is None and (overrides or engine):
        raise ConfigError(
            "--set and --engine change a new run only: give --config too, or edit nothing and leave them out"
        )
    if config is None:
        config_of(folder)
    else:
        load_config(config, with_choices(overrides, engine), files=True)
    from shadow_defense.experiment.run import Run
    from shadow_defense.folder_lock import holding

    # Opened before it is locked: what is no run directory stays untouched.
    opened = Run.open(folder) if config is None else None
    loaded = opened.config if opened else load_config(str(config), with_choices(overrides, engine))
    with holding(folder):
        run = opened or Run.create(folder, loaded, check=Run.check)
        _stage(name, run, quiet)


def demo(
    out: Annotated[Path, typer.Option(help="Where the demo is written.")] = Path("demo"),
    images: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(DEMO_IMAGES),
            help="What is trained on; default a real chest radiograph among drawn ones where pydicom-data is "
            "installed, else faces.",
        ),
    ] = None,
    overrides: Overrides = None,
    restart: Restart = False,
    quiet: Quiet = False,
) -> None:
    """The whole story in about a minute on two cores: a page that shows what an attacker sees."""
    from shadow_defense.errors import ConfigError, unknown_name

    if images is None:
        from shadow_defense.data.radiograph import find_radiograph

        images = "faces" if find_radiograph() is None else "chest"
    if images not in DEMO_IMAGES:
        raise ConfigError(unknown_name("--images", images, DEMO_IMAGES))
    _run_all("demo", [*DEMO_IMAGES[images], *(overrides or ())], out, quiet, restart)


def run_command(
    config: Annotated[str, typer.Argument(help="A preset (see `config show`) or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<preset or file name>.")] = None,
    overrides: Overrides = None,
    restart: Restart = False,
    engine: Engine = None,
    model: Model = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="LOGGER",
            help="Is told each round as it ends: tensorboard=FOLDER, mlflow, wandb, or a function as module:name.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """All stages of a run, to the report. A run that was stopped goes on where it stopped."""
    folder = out or Path("runs") / Path(config).stem
    _run_all(config, with_choices(overrides, engine, model), folder, quiet, restart, log)


def pretrain(
    folder: Annotated[Path | None, typer.Argument(help="A run directory; none with --generator and --data.")] = None,
    config: StageConfig = None,
    generator: Annotated[
        str | None, typer.Option("--generator", help="Architecture to train apart from a run: stylegan3-t-small...")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Public images: a folder, an .npz (MedMNIST layout) or a source.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default runs/<architecture>.")] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train the shadow generator on public images: of a run, or apart from any run with --generator and --data."""
    from shadow_defense.errors import ConfigError

    if folder is not None:
        if generator or data or out:
            raise ConfigError("a run directory has its generator and data in its configuration: give either of the two")
        _stage_command("pretrain", folder, config, overrides, quiet)
        return
    if generator is None or data is None or config is not None:
        raise ConfigError("pretrain needs a run directory, or --generator NAME and --data FOLDER: see pretrain --help")
    from shadow_defense.data.sources import check_images_at
    from shadow_defense.generators.registry import GENERATORS

    GENERATORS.check(generator)
    check_images_at(data)
    from shadow_defense.cli.progress import working
    from shadow_defense.experiment.pretraining import pretrain_alone, pretrain_settings

    settings = pretrain_settings(data, generator, overrides or ())
    folder = out or Path("runs") / generator
    with working(folder, quiet) as progress:
        written = pretrain_alone(settings, folder, progress)
    if not quiet:
        typer.echo(f"{written}\nuse it with --set generator.path={written}; samples: {written.parent}/grid-*.png")


def train(
    folder: RunFolder,
    config: StageConfig = None,
    overrides: Overrides = None,
    engine: Engine = None,
    quiet: Quiet = False,
) -> None:
    """Train every arm federated, each with its defense."""
    _stage_command("train", folder, config, overrides, quiet, engine)


def attack(folder: RunFolder, quiet: Quiet = False) -> None:
    """Rebuild the clients' images from their updates."""
    _stage_command("attack", folder, None, None, quiet)


def evaluate(folder: RunFolder, quiet: Quiet = False) -> None:
    """Score the reconstructions: results.json, results.csv, scores.json."""
    _stage_command("evaluate", folder, None, None, quiet)


def report(folder: RunFolder, quiet: Quiet = False) -> None:
    """Write the page."""
    _stage_command("report", folder, None, None, quiet)

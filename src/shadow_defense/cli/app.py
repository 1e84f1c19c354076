"""The commands. Heavy imports happen inside them, so that help and typing errors answer at once."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from click import UsageError
from typer.core import TyperGroup

from shadow_defense.cli.audit import audit
from shadow_defense.cli.calibrate import calibrate
from shadow_defense.cli.compare import compare
from shadow_defense.cli.evidence import evidence
from shadow_defense.cli.import_snapshot import import_snapshot
from shadow_defense.cli.options import Overrides
from shadow_defense.cli.protect import protect
from shadow_defense.cli.risks import risks
from shadow_defense.cli.stages import attack, demo, evaluate, pretrain, report, run_command, train
from shadow_defense.errors import MESSAGE_LIMIT, ShadowDefenseError, shown


class TerminatedError(KeyboardInterrupt):
    """A supervisor asked the process to end (SIGTERM): everything that an interrupt ends is ended."""


class Commands(TyperGroup):
    """An interrupt ends them with one line and 130, SIGTERM with 143; a refusal of typer's is short, as ours are."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            # Less the words that typer puts before it.
            raise UsageError(shown(error.format_message(), MESSAGE_LIMIT - 20), error.ctx) from None
        except KeyboardInterrupt as stop:
            typer.echo("shadow-defense: stopped; the same command goes on from here", err=True)
            raise typer.Exit(143 if isinstance(stop, TerminatedError) else 130) from None


# Help is plain text here, and typer escapes its "[required]" for rich wherever rich is installed.
typer.core.HAS_RICH = False

app = typer.Typer(
    name="shadow-defense",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Image sources and what they hold.", no_args_is_help=True, rich_markup_mode=None)
config_app = typer.Typer(help="Presets and settings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


def _print_version(asked: bool) -> None:
    if asked:
        from shadow_defense import __version__

        typer.echo(f"shadow-defense {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Train federated with Shadow Defense, attack the updates, and see what leaks."""


app.command()(demo)
app.command("run")(run_command)
app.command()(pretrain)
app.command()(train)
app.command()(attack)
app.command()(evaluate)
app.command()(report)
app.command()(compare)
app.command()(risks)
app.command()(evidence)
app.command()(calibrate)
app.command()(audit)
app.command()(protect)
app.command("import-snapshot")(import_snapshot)


@data_app.command("list")
def data_list() -> None:
    """The image sources."""
    from shadow_defense.data.sources import SOURCES

    width = max(map(len, SOURCES))
    for name in SOURCES:
        try:
            summary = SOURCES[name].summary
        except ShadowDefenseError as error:
            summary = str(error)
        typer.echo(f"{name:<{width}}  {summary}")


@data_app.command("show")
def data_show(
    config: Annotated[str, typer.Argument(help="A preset or a YAML file.")], overrides: Overrides = None
) -> None:
    """What a configuration's data set holds: clients, classes, sizes, duplicates."""
    import yaml

    from shadow_defense.cli.printing import LINE_LIMIT
    from shadow_defense.config import load_config
    from shadow_defense.data.build import load_dataset
    from shadow_defense.data.summary import summarise

    loaded = load_config(config, overrides or ())
    summary = summarise(load_dataset(loaded.data, loaded.seed))
    written = yaml.safe_dump(summary, sort_keys=False, allow_unicode=True).rstrip()
    typer.echo("\n".join(shown(line, LINE_LIMIT) for line in written.splitlines()))


@config_app.command("show")
def config_show(
    config: Annotated[str | None, typer.Argument(help="A preset or a YAML file; none lists the presets.")] = None,
    overrides: Overrides = None,
) -> None:
    """A configuration with every default filled in."""
    import yaml

    from shadow_defense.config import load_config, preset_titles

    if config is None:
        titles = preset_titles()
        width = max(map(len, titles))
        typer.echo("\n".join(f"{name:<{width}}  {title}" for name, title in titles.items()))
        return
    typer.echo(yaml.safe_dump(load_config(config, overrides or ()).as_dict(), sort_keys=False).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Every setting: key, type and range, default, meaning."""
    from shadow_defense.schema import describe_schema

    for key, kind, default, description in describe_schema():
        typer.echo(f"{key}: {kind} = {default}\n    {description}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"shadow-defense: {message}", err=True)
    sys.exit(2)


def _terminate(number: int, frame: object) -> NoReturn:
    # Once: a supervisor may send it to the process and again to its group, and must not cut the ending short.
    signal.signal(number, signal.SIG_IGN)
    raise TerminatedError


def run_app() -> None:
    """Run the commands; a user's error, or what the system refuses, is one line on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except ShadowDefenseError as error:
        _fail(str(error))
    except OSError as error:
        _fail(shown(error, MESSAGE_LIMIT))

"""The command that tries to rebuild images from one update, and says what leaks and why."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadow_defense.cli.options import typed
from shadow_defense.cli.protect import audit_protected

if TYPE_CHECKING:
    from shadow_defense.experiment.audit.case import Case
    from shadow_defense.metrics.limit import Limit
    from shadow_defense.report.records.audit import AuditRecord


def audit(
    run: Annotated[Path | None, typer.Argument(help="A run directory; none with --model and --update.")] = None,
    arm: Annotated[
        str | None, typer.Option(help="Arm of the run, or two with a comma between, side by side; default the first.")
    ] = None,
    round: Annotated[int | None, typer.Option(min=1, help="Round of the run; default the first kept.")] = None,
    client: Annotated[str | None, typer.Option(help="Client of the run; default the first kept.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What was trained: a preset or YAML file with `model` and `data`; package.module:factory; an exported "
            "program (.pt2) or TorchScript file (.pt, .ts)."
        ),
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="Difference of states: .safetensors, torch state dict (.pt, .pth) or .npz.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option("--global", "--before", help="The global model that the client started from.")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(help="The client's model after the round, in place of --update.")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Attacks, a comma between two; default the run's first, or inverting-gradients.")
    ] = None,
    threat_model: Annotated[str | None, typer.Option(help="Who attacks; default each attack's own setting.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="0,1", help="Labels of the client's images.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of the client's images.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Local steps behind the update.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a local step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the client's optimiser.")] = None,
    optimiser: Annotated[
        str | None, typer.Option(metavar="sgd|adam|adamw|rmsprop", help="Of the client; not given: not known.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD or RMSprop.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the client's optimiser.")] = None,
    betas: Annotated[str | None, typer.Option(metavar="0.9,0.999", help="Of Adam or AdamW.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Of Adam, AdamW or RMSprop.")] = None,
    smoothing: Annotated[float | None, typer.Option(help="Alpha of RMSprop.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="ce|bce|mse", help="Of the client; not given: not known.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of the loss ce.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="Public images of the same kind: an image, a folder or an .npz.")
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(help="Public images with labels: a folder with a sub-folder a class, an .npz or a manifest .csv."),
    ] = None,
    generator: Annotated[Path | None, typer.Option(help="Generator of such images, as `pretrain` writes it.")] = None,
    truth: Annotated[str | None, typer.Option(help="The client's own images, for scoring alone.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Images of others, among which to find the client's.")] = None,
    protected: Annotated[
        Path | None, typer.Option(help="A folder that was protected once, in place of an update; with --truth.")
    ] = None,
    texture: Annotated[
        str | None, typer.Option(metavar="white|covariance|decoy", help="How --protected was, where it doesn't say.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations of attacks that iterate.")] = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Exit with 1 if an image lies above, or that is not known: ssim, psnr, rdlv or iip.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.json, audit.html and reconstructions.")] = Path("audit"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of --model, such as data.image_size=64."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and limits passed.")] = False,
) -> None:
    """Attack one update, or a protected folder: what can be rebuilt, how close it is, and in words why.

    Of a run directory (`audit RUN`), any file (`audit --model M --update U --global G`), or a data set that was
    protected once (`audit --protected FOLDER --truth IMAGES --public PUBLIC`). What is not given, the
    attacker does not know; an attack that needs it says so before it starts. Exit code 1: a limit of --fail-above
    was passed, or is not known to be kept, since an attack was refused, or failed against a training (--optimiser,
    --loss) that was not given; 2: the input cannot be used.
    """
    from shadow_defense.cli.comma_lists import names, whole_numbers
    from shadow_defense.cli.progress import working
    from shadow_defense.errors import ConfigError, RunError
    from shadow_defense.metrics.limit import LIMITED, parse_limit

    # Before torch is imported: what is mistyped is answered at once.
    limits = [parse_limit(text, LIMITED, "--fail-above") for text in fail_above or ()]
    attacks = tuple(names(attack) or ())
    of_file: dict[str, object] = {
        "--model": model,
        "--update": update,
        "--global": before,
        "--after": after,
        "--labels": labels,
    }
    of_file |= {"--samples": samples, "--steps": steps, "--batch-size": batch_size, "--learning-rate": learning_rate}
    training: dict[str, Any] = {
        "optimiser": optimiser,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "betas": betas,
        "epsilon": epsilon,
        "smoothing": smoothing,
        "loss": loss,
        "label_smoothing": label_smoothing,
    }
    of_file |= {f"--{name.replace('_', '-')}": value for name, value in training.items()}
    of_file |= {"--template": template, "--public": public, "--generator": generator, "--truth": truth}
    of_file |= {"--gallery": gallery, "--set": overrides}
    of_run: dict[str, object] = {"--arm": arm, "--round": round, "--client": client}
    if protected is not None:
        beside = {"--truth", "--public", "--set"}
        of_attacks: dict[str, object] = {"--attack": attack, "--threat-model": threat_model, "--iterations": iterations}
        of_attacks |= {"--fail-above": fail_above, "RUN": run}
        _refuse({name: value for name, value in of_file.items() if name not in beside}, "--protected holds images")
        _refuse(of_run | of_attacks, "--protected holds images")
        audit_protected(protected, texture, truth, public, overrides or [], out, quiet)
        return
    _refuse({"--texture": texture}, "it is of --protected")
    case: Case
    command = typed()
    if run is not None:
        _refuse(of_file, "a run directory has its own")
        if not run.is_dir():
            raise RunError(f"{run} is no run directory: give one, or --model, --update and --global")
        from shadow_defense.experiment.audit.of_run import case_of_run

        given = {"round": round, "client": client, "attacks": attacks, "threat_model": threat_model}
        cases = {name: case_of_run(run, arm=name, iterations=iterations, **given) for name in _arms(arm)}  # type: ignore[arg-type]
        if len(cases) > 1:
            _audit_pair(cases, limits, out, command, quiet)
            return
        (case,) = cases.values()
    else:
        _refuse(of_run, "only a run directory has one")
        if model is None:
            raise ConfigError("audit needs a run directory, or --model, --update and --global: see audit --help")
        known = whole_numbers(labels, "--labels")
        from shadow_defense.experiment.audit.case import Given
        from shadow_defense.experiment.audit.of_model import case_of_update

        case = case_of_update(
            Given(
                model=model,
                overrides=tuple(overrides or ()),
                update=update,
                before=before,
                after=after,
                attacks=attacks or ("inverting-gradients",),
                threat_model=threat_model,
                iterations=iterations,
                labels=None if known is None else tuple(known),
                samples=samples,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                training={**training, "betas": None if betas is None else names(betas)},
                template=template,
                public=public,
                generator=generator,
                truth=truth,
                gallery=gallery,
            )
        )
    from shadow_defense.experiment.audit.running import PAGE, run_audit

    with working(out, quiet) as progress:
        record = run_audit(out, case, limits=limits, command=command, progress=progress)
    if not quiet:
        _summary(record, out / PAGE)
    _end({"": record})


def _arms(text: str | None) -> list[str | None]:
    from shadow_defense.errors import ConfigError

    chosen = [None] if text is None else [part.strip() for part in text.split(",")]
    if len(chosen) > 2 or len(set(chosen)) < len(chosen) or "" in chosen:
        raise ConfigError(f"--arm {text}: expected one arm, or two different ones with a comma between them")
    return list(chosen)


def _audit_pair(cases: dict[str | None, Case], limits: list[Limit], out: Path, command: str, quiet: bool) -> None:
    from rich.console import Console

    from shadow_defense.cli.printing import print_page, print_sentences
    from shadow_defense.cli.progress import working
    from shadow_defense.experiment.audit.running import PAGE, run_pair

    named = {str(case.subject["arm"]): (str(case.subject["title"]), case) for case in cases.values()}
    with working(out, quiet) as progress:
        pair = run_pair(out, named, limits=limits, command=command, progress=progress)
    if not quiet:
        console = Console()
        print_sentences(console, pair.verdict)
        print_page(console, out / PAGE)
    _end({f"{title}, ": record for title, record in pair.audits.items()})


def _end(records: Mapping[str, AuditRecord]) -> None:
    """Say which limits are passed or not known, and end with 1 where there are such."""
    from shadow_defense.cli.printing import LINE_LIMIT
    from shadow_defense.errors import shown

    for title, record in records.items():
        for sentence in record.exceeded:
            typer.echo(shown(f"{title}above the limit: {sentence}", LINE_LIMIT), err=True)
        for sentence in record.not_known:
            typer.echo(shown(f"{title}not known: {sentence}", LINE_LIMIT), err=True)
    if any(record.exceeded or record.not_known for record in records.values()):
        raise typer.Exit(1)


def _refuse(values: dict[str, object], reason: str) -> None:
    from shadow_defense.errors import ConfigError

    for flag, value in values.items():
        if value is not None:
            raise ConfigError(f"{flag} does not go with this form of audit: {reason}; leave it out")


def _summary(record: AuditRecord, page: Path) -> None:
    from rich.console import Console

    from shadow_defense.cli.printing import print_line, print_page

    console = Console()
    say = partial(print_line, console)
    end = record.assessment
    console.print(f"{end.status.upper()}: ", style="bold", end="", highlight=False)
    say(end.headline)
    for step in end.next_steps:
        say(f"  next: {step}")
    say("")
    for text in dict.fromkeys(record.threat_models.values()):
        # A line of its own for who it is, what it sees, what it is granted and what not.
        for line in f"Threat model {text}".splitlines():
            say(line)
        say("")
    for attack in record.attacks.values():
        for sentence in attack.sentences:
            say(f"  {sentence}")
    for effect in dict.fromkeys(reason.effect for reason in record.diagnosis):
        say("")
        say(f"{effect.capitalize()}:")
        for reason in record.diagnosis:
            if reason.effect == effect:
                say(f"  {reason.sentence}")
    say("")
    for note in record.notes:
        say(f"  {note}")
    print_page(console, page)

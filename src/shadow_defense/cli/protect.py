"""`shadow-defense protect`: a protected data set and its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from shadow_defense.cli.options import Overrides, Quiet, typed


def protect(
    images: Annotated[
        str,
        typer.Argument(
            help="An .npz in the MedMNIST layout, a folder of class folders (pictures or DICOM), a CSV that lists "
            "files, or a source that needs no file."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for the protected data set.")],
    public: Annotated[
        str | None, typer.Option(help="Public images, which the attacker may know: given as IMAGES, or any folder.")
    ] = None,
    aside: Annotated[
        float | None,
        typer.Option("--set-aside", metavar="N", help="Take so many training images as public: a count, or below 1."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="recommended, directions, white, covariance or decoy: docs/protect.md measures them.")
    ] = "recommended",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE=NUMBER",
            help="The weakest strength that leaves no more: rdlv, psnr (+2) or linkage; recommended has its own.",
        ),
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="Of decoys, as `pretrain` writes it: trained on public images alone.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose answers say what to keep, in place of labels: package.module:factory, a program (.pt2), "
            "TorchScript (.pt, .ts), or a YAML file whose `model` has a `start`.",
        ),
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(help="An earlier protected folder, of these images, that --model was trained on: counted in."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Protect so many training images only: a trial.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Bring images to squares of this side; default their own.")
    ] = None,
    grey_range: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Grey values of the files that are black and white, such as 0,4095."),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Protect a data set once: any framework trains on it, and a certificate says what is left in it.

    Exit code 1: the certificate's verdict is withheld; 2: the input cannot be used.
    """
    from shadow_defense.cli.progress import working
    from shadow_defense.config import assignments
    from shadow_defense.data.sources import check_images_at

    for given in (images, public):
        if given is not None:
            check_images_at(given)
    from shadow_defense.experiment.protecting.material import Request
    from shadow_defense.experiment.protecting.protecting import protect_data
    from shadow_defense.experiment.protecting.settings import protect_preset, targets_of

    options = assignments(overrides or ())
    request = Request(
        images=images,
        public=public,
        aside=aside,
        settings=protect_preset(preset, **options),
        targets=targets_of(preset, target, options),
        limit=limit,
        image_size=image_size,
        grey_range=None if grey_range is None else _range(grey_range),
        generator=generator,
        model=model,
        trained_on=trained_on,
    )
    with working(out, quiet) as progress:
        certificate = protect_data(
            request,
            out,
            command=typed(),
            progress=progress,
            tell=None if quiet else tell_forecast,
        )
    told(certificate, out, quiet)


def audit_protected(
    protected: Path,
    texture: str | None,
    truth: str | None,
    public: str | None,
    overrides: list[str],
    out: Path,
    quiet: bool,
) -> None:
    """Hand the attacker the folder as it lies there, and write the certificate of what it makes of it."""
    from shadow_defense.cli.progress import working
    from shadow_defense.config import assignments
    from shadow_defense.errors import ConfigError
    from shadow_defense.experiment.protecting.folder_audit import FolderRequest, audit_folder
    from shadow_defense.experiment.protecting.settings import protect_preset

    if truth is None:
        raise ConfigError("--protected needs the images that it was made of, for scoring alone: give --truth")
    settings = protect_preset(texture or "recommended", **assignments(overrides))
    request = FolderRequest(protected, truth, public, settings, told=texture is not None)
    with working(out, quiet) as progress:
        tell = None if quiet else tell_forecast
        certificate = audit_folder(request, out, command=typed(), progress=progress, tell=tell)
    told(certificate, out, quiet)


def _range(text: str) -> tuple[float, float]:
    from shadow_defense.errors import ConfigError

    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not -1e9 < low < high < 1e9:
        raise ConfigError(f"--grey-range {text}: expected the black value and the white above it, such as 0,4095")
    return low, high


def tell_forecast(seconds: Mapping[str, float]) -> None:
    """Print how long it will take."""
    from rich.console import Console

    from shadow_defense.cli.printing import print_sentences
    from shadow_defense.report.sentences.certificate import protecting_forecast

    print_sentences(Console(), [protecting_forecast(seconds)])


def told(certificate: dict[str, Any], out: Path, quiet: bool) -> None:
    """Print a certificate's verdict, unless quiet; the exit code is 1 where it is withheld."""
    if not quiet:
        from rich.console import Console

        from shadow_defense.cli.printing import print_page, print_sentences
        from shadow_defense.experiment.protecting.folder import PAGE

        console = Console()
        print_sentences(console, [*certificate["verdict"], *certificate["notes"]])
        print_page(console, out / PAGE)
    if not all(certificate["planted_breaks"].values()):
        raise typer.Exit(1)

"""The command that turns a StyleGAN3 training snapshot into a generator file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shadow_defense.generators.snapshots.importing import Snapshot
    from shadow_defense.generators.snapshots.network_record import NetworkRecord


def _text(value: object) -> str:
    """A value out of the file without what could move a terminal's cursor."""
    return ascii(value)[1:-1] if isinstance(value, str) else ascii(value)


def _configuration(arguments: dict[str, Any]) -> str:
    kernel, radial = arguments.get("conv_kernel", 3), arguments.get("use_radial_filters", False)
    if kernel == 3 and not radial:
        return "T"
    return "R" if kernel == 1 and radial else "neither T nor R"


def _network_line(name: str, record: NetworkRecord) -> str:
    facts = [f"{_text(name)}: {_text(record.class_name)}", f"{record.parameter_count:,} parameters"]
    told = {key: _text(value) for key, value in record.arguments.items()}
    if record.class_name == "Generator":
        facts += [f"configuration {_configuration(record.arguments)}"]
        facts += [f"z {told.get('z_dim', '?')}", f"w {told.get('w_dim', '?')}"]
    if "img_resolution" in told:
        facts += [f"{told['img_resolution']} px", f"{told.get('img_channels', '?')} channels"]
        conditional = record.arguments.get("c_dim")
        facts += [f"conditional on {told['c_dim']} classes" if conditional else "unconditional"]
    return ", ".join(facts)


def snapshot_lines(snapshot: Snapshot) -> list[str]:
    """What a snapshot holds, a line a network, then its training."""
    lines = [_network_line(name, record) for name, record in snapshot.networks.items()]
    if snapshot.kimg is not None:
        lines.append(f"trained on {snapshot.kimg} thousand images, by its file name")
    if snapshot.training_set:
        described = ", ".join(f"{_text(key)}={value!a}" for key, value in snapshot.training_set.items())
        lines.append(f"training set: {described}")
    if snapshot.augment_probability is not None:
        lines.append(f"augmentation probability: {snapshot.augment_probability:.3g}")
    return lines


def import_snapshot(
    snapshot: Annotated[Path, typer.Argument(metavar="FILE.pkl", help="A StyleGAN3 training snapshot.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the generator is written.")] = Path(
        "generator.safetensors"
    ),
    network: Annotated[str, typer.Option(help="G_ema, the moving average that makes the images, or G.")] = "G_ema",
    discriminator: Annotated[
        Path | None, typer.Option("--discriminator", "-d", help="Write the discriminator too, for fine-tuning.")
    ] = None,
) -> None:
    """Make a generator from an official StyleGAN3 snapshot; nothing inside the file is run."""
    from shadow_defense.generators.snapshots.snapshot_file import check_file

    # Before torch is imported: what is mistyped is answered at once.
    check_file(snapshot)
    from shadow_defense.generators.snapshots.importing import read_snapshot, save_imported

    found = read_snapshot(snapshot)
    for line in snapshot_lines(found):
        typer.echo(line)
    save_imported(snapshot, found, out, network, discriminator)
    typer.echo(f"wrote {network} to {out}")
    if discriminator is not None:
        typer.echo(f"wrote D to {discriminator}")

"""What a record says about its generator, checked against its tensors before anything of the said size is built."""

from __future__ import annotations

from typing import Any

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.network_record import NetworkRecord
from shadow_defense.unpickling import quoted

OFFICIAL_DEFAULTS: dict[str, Any] = {
    "mapping_kwargs": {},
    "channel_base": 32768,
    "channel_max": 512,
    "conv_kernel": 3,
    "use_radial_filters": False,
    "magnitude_ema_beta": 0.999,
}
"""What an official generator takes for arguments that its record leaves out (docs/generators.md)."""


def _told_by_tensors(record: NetworkRecord) -> dict[str, int]:
    """The numbers on which the size of a network depends, from names and shapes alone."""
    shapes = {name: tuple(tensor.shape) for name, tensor in record.tensors.items()}
    # A layer is named L{index}_{size}_{channels}; the last one writes the image.
    layers = [name.split(".")[1] for name in shapes if name.startswith("synthesis.L") and name.endswith("_ema")]
    (w_dim,) = shapes["mapping.w_avg"]
    c_dim = shapes["mapping.embed.weight"][1] if "mapping.embed.weight" in shapes else 0
    return {
        "z_dim": shapes["mapping.fc0.weight"][1] - (w_dim if c_dim else 0),
        "c_dim": c_dim,
        "w_dim": w_dim,
        "img_resolution": int(layers[-1].split("_")[1]),
        "img_channels": shapes[f"synthesis.{layers[-1]}.weight"][0],
        "conv_kernel": shapes[f"synthesis.{layers[0]}.weight"][2],
        "number of mapping layers": sum(name.startswith("mapping.fc") and "weight" in name for name in shapes),
        "number of channels": shapes["synthesis.input.weight"][0],
    }


def _told_by_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The same from the arguments.

    The first cut-off is 2, so the first layer has ``rint(min(channel_base / 2 / 2, channel_max))`` channels, and no
    other has more (docs/generators.md).
    """
    told = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "conv_kernel")
    return {
        **{key: given[key] for key in told},
        "number of mapping layers": given["mapping_kwargs"].get("num_layers", 2),
        "number of channels": round(min(given["channel_base"] / 4, given["channel_max"])),
    }


def check_claims(record: NetworkRecord) -> None:
    """Refuse all but a StyleGAN3 generator whose arguments fit its tensors.

    A network of the claimed size is built to receive the tensors: a claim of a million channels must not reach it.

    Raises:
        SnapshotError: when it does not fit, or has weights that are not finite.
    """
    if record.class_name != "Generator" or "synthesis.input.freqs" not in record.tensors:
        raise SnapshotError(f"its {quoted(record.class_name)} is no StyleGAN3 generator")
    given = OFFICIAL_DEFAULTS | record.arguments
    try:
        measured, claimed = _told_by_tensors(record), _told_by_arguments(given)
        beta_fits = 0 <= given["magnitude_ema_beta"] <= 1
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise SnapshotError("its generator's arguments or tensors are not those of StyleGAN3") from error
    for key, value in measured.items():
        if type(claimed[key]) is not int or claimed[key] != value:
            said = quoted(str(claimed[key]))
            raise SnapshotError(f"its generator's {key} is said to be {said} but its tensors have {value}")
    if not beta_fits or type(given["use_radial_filters"]) is not bool:
        raise SnapshotError("its generator's magnitude_ema_beta or use_radial_filters are out of range")
    check_finite(record)


def check_finite(record: NetworkRecord) -> None:
    """Refuse weights that are not finite in float32, which a training leaves that diverged.

    Raises:
        SnapshotError: naming the first such tensor.
    """
    for name, tensor in record.tensors.items():
        # Networks hold float32: a larger float64 would become infinite in them.
        if not tensor.float().isfinite().all():
            raise SnapshotError(f"its {quoted(name)} holds NaN or infinity: take a snapshot from before it diverged")

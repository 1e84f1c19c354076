"""From a record to its network: the tensors must be those of the architecture that the arguments describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from shadow_defense.errors import GeneratorError, SnapshotError
from shadow_defense.generators.snapshots.claims import OFFICIAL_DEFAULTS, check_claims, check_finite
from shadow_defense.generators.snapshots.network_record import NetworkRecord
from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator
from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator
from shadow_defense.unpickling import quoted

MOST_DEVIATION = 4096
"""Of images in a group and of added channels; official trainings have 4 to 64 and 1."""


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what building and loading raise into one line."""
    try:
        yield
    except GeneratorError as error:
        raise SnapshotError(str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = quoted(" ".join(str(error).split()), 200)
        raise SnapshotError(f"its {what} cannot be rebuilt: {reason}; give an unchanged official snapshot") from error


def build_generator(record: NetworkRecord) -> StyleGAN3Generator:
    """The network of a record, with its weights, in eval mode.

    Raises:
        SnapshotError: when the record is no StyleGAN3 generator, contradicts itself, or has other tensors.
    """
    check_claims(record)
    with _refusing("generator"):
        generator = StyleGAN3Generator.from_official_arguments(record.arguments)
        generator.load_state_dict(record.tensors)
    return generator.eval()


def _deviation(told: object) -> dict[str, Any]:
    """The official options of the last block, as the discriminator here takes them; others are refused."""
    names = {"mbstd_group_size": "deviation_group", "mbstd_num_channels": "deviation_channels"}
    if not isinstance(told, dict) or not told.keys() <= names.keys():
        raise ValueError(f"epilogue_kwargs other than {' and '.join(names)}")
    for option, value in told.items():
        least = 1 if option == "mbstd_group_size" else 0
        if (value is not None or not least) and not (type(value) is int and least <= value <= MOST_DEVIATION):
            raise ValueError(f"{option} is said to be {value}")
    return {names[option]: value for option, value in told.items()}


def build_discriminator(record: NetworkRecord) -> StyleGAN3Discriminator:
    """The network of a record, with its weights in float32; nothing of a claimed size is allocated for it.

    Raises:
        SnapshotError: when the record is no discriminator, has other tensors than its arguments say, or has weights
            that are not finite.
    """
    if record.class_name != "Discriminator":
        raise SnapshotError("its D is no discriminator; give an unchanged official snapshot")
    given = OFFICIAL_DEFAULTS | record.arguments
    sizes = ("img_resolution", "img_channels", "c_dim", "channel_base", "channel_max")
    with _refusing("discriminator"):
        # The number of layers, too, grows with what is claimed.
        if f"b{given['img_resolution']}.fromrgb.weight" not in record.tensors:
            raise ValueError("its tensors are not those of its img_resolution")
        deviation = _deviation(given.get("epilogue_kwargs", {}))
        with torch.device("meta"):
            discriminator = StyleGAN3Discriminator(**{name: given[name] for name in sizes}, **deviation)
        tensors = {name: tensor.float() for name, tensor in record.tensors.items()}
        discriminator.load_state_dict(tensors, assign=True)
    check_finite(record)
    return discriminator.eval()

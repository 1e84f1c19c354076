"""The names that an official snapshot may say, and what each becomes here: the whole list, and nothing that acts."""

from __future__ import annotations

from functools import partial

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.legacy_storage import LegacyStorage, read_legacy_storage
from shadow_defense.generators.snapshots.network_record import persistent_object
from shadow_defense.generators.snapshots.tensors import rebuild_parameter, rebuild_tensor
from shadow_defense.unpickling import Allowance, Placeholder, Replacement, StandIn, string_keys

NUMPY = (
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("scalar", "_reconstruct")
    ),
)
"""Constants of the layers, which follow from the network's arguments: not kept."""


def _empty_dict(arguments: tuple[object, ...]) -> dict[str, object]:
    if arguments:
        raise SnapshotError("a dictionary is built from arguments")
    return {}


def _string_set(arguments: tuple[object, ...]) -> set[str]:
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise SnapshotError("a set is built from something that is no list")
    return set(string_keys(arguments[0]))


def _forget(arguments: tuple[object, ...]) -> Placeholder:
    return Placeholder()


def _storage(allowance: Allowance, arguments: tuple[object, ...]) -> LegacyStorage:
    if len(arguments) != 1 or type(arguments[0]) is not bytes:
        raise SnapshotError("a tensor's storage is built from something that is not bytes")
    return read_legacy_storage(arguments[0], allowance)


def _encode(allowance: Allowance, arguments: tuple[object, ...]) -> bytes:
    # Protocol 2 has no bytes: it writes them as text and has the text encoded.
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise SnapshotError("bytes are built from something that is no latin1 text")
    allowance.copy(len(arguments[0]))
    try:
        return arguments[0].encode("latin1")
    except UnicodeEncodeError as error:
        raise SnapshotError("bytes are built from text that is not latin1") from error


def official_names(allowance: Allowance) -> dict[tuple[str, str], StandIn]:
    """The stand-ins of one reading, by module and name (docs/generators.md)."""
    replacements: dict[tuple[str, str], Replacement] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_object,
        ("dnnlib.util", "EasyDict"): _empty_dict,
        ("collections", "OrderedDict"): _empty_dict,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch.storage", "_load_from_bytes"): partial(_storage, allowance),
        ("_codecs", "encode"): partial(_encode, allowance),
        ("__builtin__", "set"): _string_set,
        # The format's notes leave it out, but protocol 3 (Python 3.7) writes every set by this name.
        ("builtins", "set"): _string_set,
        **dict.fromkeys(NUMPY, _forget),
    }
    return {key: StandIn(".".join(key), replace) for key, replace in replacements.items()}

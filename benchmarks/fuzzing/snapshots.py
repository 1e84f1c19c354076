"""StyleGAN3 snapshots: pickles of official names with other programs, claims and values in them."""

from __future__ import annotations

import pickle
import pickletools
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import change_bytes, odd_value

PIECES = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
    b"ctorch.storage\n_load_from_bytes\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"cdnnlib.util\nEasyDict\n", b"N", b"}", b"]", b")", b"(", b"t", b"\x85",
    b"\x86", b"\x87", b"R", b"b", b"a", b"e", b"s", b"u", b"\x81", b"\x93", b"\x94", b"0", b"2", b"h\x00", b"h\x01",
    b"h\xff", b"Q", b"J\xff\xff\xff\x7f", b"K\x05", b"X\x01\x00\x00\x00G", b"X\xff\xff\xff\x7fG",
    b"\x8a\xff" + b"\xff" * 255, b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"I" + b"9" * 5000 + b"\n",
    b"C\x04abcd", b"\x95" + b"\xff" * 8, b"B\xff\xff\xff\xff", b"G" + b"\xff" * 8, b"q\x01", b"r\xff\xff\xff\xff",
    b"\x8f", b"\x91", b"P1\n", b"F1e999\n",
)  # fmt: skip


def official(random: np.random.Generator) -> bytes:
    """A snapshot of small networks with the official names, as Python's own pickling writes it."""
    import torch
    from torch import nn

    from shadow_defense.generators.stylegan3.generator import StyleGAN3Generator

    arguments: dict[str, Any] = {
        "z_dim": 4, "w_dim": 4, "c_dim": 0, "img_resolution": 16, "img_channels": 1, "channel_base": 64,
        "channel_max": 8, "mapping_kwargs": {"num_layers": 1},
    }  # fmt: skip
    state = StyleGAN3Generator.from_official_arguments(arguments).state_dict()
    if random.random() < 0.6:
        key = pick(random, (*arguments, "stranger", "magnitude_ema_beta", "conv_kernel", "use_radial_filters"))
        arguments[key] = pick(
            random, (0, -1, 10**9, 2**70, "x", None, [4], {"num_layers": 10**6}, 0.5, odd_value(random))
        )
    if random.random() < 0.3:
        name = pick(random, tuple(state))
        state[name] = pick(
            random,
            (
                state[name].half(),
                state[name][None],
                torch.zeros(1).expand(10**9),
                torch.zeros(0),
                torch.full_like(state[name].float(), float("nan")),
            ),
        )
    module = types.ModuleType("torch_utils.persistence")

    def rebuild(meta: dict[str, Any]) -> None:
        raise AssertionError("the official loader was called")

    rebuild.__module__, rebuild.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    rebuild.__name__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]

    class Persistent(nn.Module):
        def __init__(self, **keywords: Any) -> None:
            super().__init__()
            self._init_args, self._init_kwargs = (), keywords

        def __reduce__(self) -> Any:
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": type(self).__name__}
            return rebuild, (meta | {"state": self.__dict__},)

    network: Any = type("Generator", (Persistent,), {})(**arguments)
    for name, tensor in state.items():
        *path, last = name.split(".")
        place = network
        for part in path:
            if part not in place._modules:
                place._modules[part] = Persistent()
            place = place._modules[part]
        place._buffers[last] = tensor
    try:
        sys.modules.update({"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": module})
        return pickle.dumps({"G_ema": network, "training_set_kwargs": {"resolution": 16}}, protocol=4)
    finally:
        for name in ("torch_utils", "torch_utils.persistence"):
            del sys.modules[name]


def _change_program(random: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    """Instructions put in, left out or repeated between others."""
    places = [place for _, _, place in pickletools.genops(content)]
    done = []
    for _ in range(int(random.integers(1, 4))):
        place = places[int(random.integers(len(places)))]
        how = pick(random, ("put in", "put in", "repeat", "length"))
        if how == "put in":
            piece = pick(random, PIECES)
            content = content[:place] + piece + content[place:]
            done.append(f"{piece[:12]!a} at {place}")
        elif how == "repeat":
            content = content[:place] + content[place : place + 30] * int(random.integers(1, 2000)) + content[place:]
            done.append(f"repeat at {place}")
        else:
            content = (
                content[: place + 1] + struct.pack("<I", pick(random, (0, 2**31 - 1, 2**32 - 1))) + content[place + 5 :]
            )
            done.append(f"length at {place}")
    return content, ", ".join(done)


def make(random: np.random.Generator, folder: Path) -> Input:
    """One snapshot, read and imported."""
    from shadow_defense.generators.snapshots.importing import read_snapshot, save_imported

    choice = random.random()
    content, what = official(random), "as written"
    if choice < 0.3:
        content, what = _change_program(random, content)
    elif choice < 0.5:
        content, what = change_bytes(random, content)
    elif choice < 0.7:
        pieces = [pick(random, PIECES) for _ in range(int(random.integers(1, 60)))]
        content, what = b"\x80\x04" + b"".join(pieces) + b".", "invented"
    elif choice < 0.75:
        content, what = b"\x80\x04" + b"(" * 10**6 + b"]" * 10**5 + b"l" * 10**5 + b".", "nested"
    path = folder / "network-snapshot-000001.pkl"
    path.write_bytes(content)

    def give() -> None:
        save_imported(path, read_snapshot(path), folder / "generator.safetensors", "G_ema", None)

    return Input(what, give)


MODULES = (
    "shadow_defense.generators.snapshots.importing", "shadow_defense.generators.stylegan3.generator",
    "shadow_defense.generators.stylegan3.discriminator", "shadow_defense.generators.build",
)  # fmt: skip
KIND = Kind(make, MODULES)

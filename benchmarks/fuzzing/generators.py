"""Generator files: metadata that say what is to be built."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from fuzzing.kind import Input, Kind, pick
from fuzzing.mutations import change_bytes, change_tree
from fuzzing.tensors import header_file


def make(random: np.random.Generator, folder: Path) -> Input:
    """One generator file, whose metadata say what is built."""
    from shadow_defense.generators.build import load_generator

    name = pick(random, ("dcgan", "dcgan", "stylegan3-t-tiny"))
    content = (folder.parents[2] / "begun" / "generator" / f"{name}.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = json.loads(header["__metadata__"]["json"])
    if random.random() < 0.5:
        key = pick(random, (*metadata["arguments"], "stranger"))
        metadata["arguments"][key] = value = pick(
            random, (0, -1, 1, 3, 1000, 100_000, 10**9, 1e9, "8", None, [8], True, 2**70, 0.5, float("nan"))
        )
        change = f"{key}={value}"
    else:
        metadata, change = change_tree(random, metadata)
    header["__metadata__"]["json"] = json.dumps(metadata, default=str)
    path = folder / "generator.safetensors"
    content = header_file(json.dumps(header).encode("utf-8", "surrogatepass"), data)
    if random.random() < 0.15:
        content, more = change_bytes(random, content)
        change += f"; {more}"
    path.write_bytes(content)
    return Input(f"{name}: {change}", lambda: load_generator(path))


def _prepare(folder: Path) -> None:
    from shadow_defense.generators.build import build_networks, save_generator
    from shadow_defense.generators.settings import GeneratorSettings

    for name in ("dcgan", "stylegan3-t-tiny"):
        settings = GeneratorSettings(name=name, z_dim=8, width=4 if name == "dcgan" else None)
        generator, _ = build_networks(settings, image_size=16, channels=1, seed=0)
        save_generator(folder / f"{name}.safetensors", generator, name, {})


KIND = Kind(make, ("shadow_defense.experiment.plans.run",), _prepare)

"""From a StyleGAN3 training snapshot to a generator file of this project."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any

from shadow_defense.errors import SnapshotError
from shadow_defense.files import atomic_path
from shadow_defense.generators.snapshots.network_record import (
    NetworkRecord,
    PersistentObject,
    network_record,
    plain_value,
)
from shadow_defense.generators.snapshots.snapshot_file import SIZE_LIMIT, snapshot_bytes
from shadow_defense.generators.snapshots.stand_ins import official_names
from shadow_defense.unpickling import Allowance, Machine, quoted

STEPS = 1_000_000
"""Pickle instructions of a whole file, with its storages. An official snapshot has about 45 000, whatever its size."""

PICKLE_START = b"\x80"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What an official training snapshot holds.

    Attributes:
        networks: by the snapshot's names: ``G``, ``G_ema`` (its moving average, for use), ``D``, ``augment_pipe``.
        training_set: the official data set's arguments, or None when the file has none.
        kimg: thousands of real images that the discriminator had seen, which only the official file name says.
    """

    networks: dict[str, NetworkRecord]
    training_set: dict[str, Any] | None
    kimg: int | None

    @property
    def augment_probability(self) -> float | None:
        """The probability that adaptive augmentation had reached.

        None when the training did not augment, or when it is not finite: the weights are good without it.
        """
        pipe = self.networks.get("augment_pipe")
        probability = None if pipe is None else pipe.tensors.get("p")
        if probability is None or probability.numel() != 1 or not probability.isfinite().all():
            return None
        return float(probability)

    def network(self, name: str) -> NetworkRecord:
        """The network of that name. Raises :class:`SnapshotError` listing those there are."""
        if name not in self.networks:
            there = ", ".join(map(quoted, self.networks))
            raise SnapshotError(f"the snapshot holds no network {quoted(name)}: choose one of {there}")
        return self.networks[name]


def _parse(content: bytes) -> tuple[dict[str, NetworkRecord], dict[str, Any] | None]:
    if not content.startswith(PICKLE_START):
        raise SnapshotError("it is no pickle")
    allowance = Allowance(STEPS, copied_bytes=2 * len(content))
    root = Machine(official_names(allowance), allowance).run(io.BytesIO(content))
    if type(root) is not dict:
        raise SnapshotError("it holds something else than a dictionary of networks")
    networks = {
        name: network_record(value, allowance) for name, value in root.items() if type(value) is PersistentObject
    }
    if not networks:
        raise SnapshotError("it holds no network")
    training_set = root.get("training_set_kwargs")
    if training_set is not None and type(training_set) is not dict:
        raise SnapshotError("its training_set_kwargs is no dictionary")
    return networks, plain_value(training_set, allowance)


def read_snapshot(path: Path, size_limit: int = SIZE_LIMIT) -> Snapshot:
    """Read a snapshot without running anything in it (docs/generators.md).

    The pickle goes through a machine of our own that knows a few names, each replaced by an inert stand-in; the Python
    source text that the file carries is dropped. Peak memory is about three times the file's size.

    Args:
        size_limit: bytes above which the file is refused before it is parsed.

    Raises:
        SnapshotError: when it is larger, damaged, no snapshot, or asks for anything that snapshots do not need.
    """
    content = snapshot_bytes(path, size_limit)
    try:
        networks, training_set = _parse(content)
    except SnapshotError as error:
        raise SnapshotError(
            f"cannot read {path} as a StyleGAN3 training snapshot: {error}; give a network-snapshot-*.pkl that "
            "official StyleGAN3 training wrote"
        ) from error
    except MemoryError as error:
        raise SnapshotError(
            f"{path} does not fit into memory: free about three times its {len(content)} bytes"
        ) from error
    named = re.fullmatch(r"network-snapshot-(\d{6,9})", path.stem)
    return Snapshot(networks, training_set, int(named[1]) if named else None)


def _origin(path: Path, snapshot: Snapshot, network: str) -> dict[str, Any]:
    """How the weights came about, for the file; folders of other people's machines stay out."""
    training_set: Mapping[str, Any] = snapshot.training_set or {}
    return {
        "from": "StyleGAN3 training snapshot",
        "file": path.name,
        "network": network,
        "kimg": snapshot.kimg,
        "augment_probability": snapshot.augment_probability,
        "training_set": {key: value for key, value in training_set.items() if key not in ("path", "class_name")},
    }


def _check_targets(path: Path, out: Path, discriminator_out: Path | None) -> None:
    """Refuse files that would stand in each other's way."""
    targets = {"generator": out} | ({} if discriminator_out is None else {"discriminator": discriminator_out})
    for what, target in targets.items():
        if realpath(target) == realpath(path):
            raise SnapshotError(f"the {what} would be written over the snapshot {path}: choose another name for it")
        if target.is_dir():
            raise SnapshotError(f"the {what} cannot be written to {target}, which is a folder: give a file's name")
    if discriminator_out is not None:
        one, other = Path(realpath(out)), Path(realpath(discriminator_out))
        if one == other or one in other.parents or other in one.parents:
            raise SnapshotError(
                f"the generator {out} and the discriminator {discriminator_out} cannot both be written: give two "
                "different files, none in a folder of the other's name"
            )


def save_imported(
    path: Path, snapshot: Snapshot, out: Path, network: str = "G_ema", discriminator_out: Path | None = None
) -> None:
    """Write the generator ``network`` of a snapshot read from ``path`` to ``out``, whole or not at all.

    Args:
        discriminator_out: where the snapshot's discriminator is written, with which the generator can be fine-tuned;
            either both are written or none.

    Raises:
        SnapshotError: when there is no such network, one cannot be rebuilt, or the files are not all different.
        RunError: when a file cannot be written.
    """
    from shadow_defense.generators.build import save_discriminator, save_generator
    from shadow_defense.generators.snapshots.rebuilding import build_discriminator, build_generator

    _check_targets(path, out, discriminator_out)
    try:
        record = snapshot.network(network)
        generator = build_generator(record)
        discriminator = None if discriminator_out is None else build_discriminator(snapshot.network("D"))
    except SnapshotError as error:
        raise SnapshotError(f"cannot import {path}: {error}") from error
    # The file keeps the network's own width; of the registry's entries only the configuration matters to it.
    name = "stylegan3-r" if record.arguments.get("use_radial_filters") else "stylegan3-t"
    # The generator gets its own name only after the discriminator is written.
    with atomic_path(out) as partial:
        # A folder that cannot be written is told by the name that was asked for, not by the partial file's.
        partial.touch()
        save_generator(partial, generator, name, _origin(path, snapshot, network))
        if discriminator is not None and discriminator_out is not None:
            save_discriminator(discriminator_out, discriminator, name)


def import_snapshot(path: Path, out: Path, network: str = "G_ema", size_limit: int = SIZE_LIMIT) -> Snapshot:
    """Read a snapshot, write its generator to ``out``, and give back what was read.

    Raises:
        SnapshotError: as :func:`read_snapshot` and :func:`save_imported`; nothing is written then.
    """
    snapshot = read_snapshot(path, size_limit)
    save_imported(path, snapshot, out, network)
    return snapshot

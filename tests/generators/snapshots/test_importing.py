"""Files: whole snapshots, and everything that is none."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shadow_defense.errors import SnapshotError
from shadow_defense.generators.snapshots.claims import check_claims
from shadow_defense.generators.snapshots.importing import Snapshot, import_snapshot, read_snapshot, save_imported
from shadow_defense.generators.snapshots.network_record import NetworkRecord


class Act:
    """A payload: unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def refused(path: Path) -> str:
    out = path.with_name("generator.safetensors")
    before = sorted(path.parent.iterdir())
    with pytest.raises(SnapshotError) as caught:
        import_snapshot(path, out)
    assert sorted(path.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_a_snapshot_holds(little_snapshot: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "network-snapshot-000200.pkl"
    path.write_bytes(pickle.dumps(little_snapshot))
    snapshot = read_snapshot(path)
    assert list(snapshot.networks) == ["G", "G_ema"]
    assert snapshot.training_set == {"resolution": 16}
    assert snapshot.kimg == 200
    assert snapshot.augment_probability is None
    path.rename(tmp_path / "renamed.pkl")
    assert read_snapshot(tmp_path / "renamed.pkl").kimg is None


def test_a_payload_anywhere_is_refused_by_name_and_not_run(little_snapshot: dict[str, Any], tmp_path: Path) -> None:
    path, target = tmp_path / "planted.pkl", tmp_path / "touched"
    places: list[dict[str, Any]] = [
        {"G": Act(target)},
        little_snapshot | {"more": Act(target)},
        little_snapshot | {"training_set_kwargs": {"path": Act(target)}},
    ]
    little_snapshot["G"].outer.hook = Act(target)
    for content in (*places, little_snapshot):
        path.write_bytes(pickle.dumps(content))
        assert "system'" in refused(path)
        assert not target.exists()


def test_a_payload_inside_a_storage_is_refused_by_name(little_pickle: bytes, tmp_path: Path) -> None:
    """The inner pickle names a type of torch; a name as long takes its place."""
    path = tmp_path / "planted.pkl"
    planted = little_pickle.replace(b"ctorch\nFloatStorage\n", b"cbuiltins\ncompiles__\n"[:19] + b"\n", 1)
    assert len(planted) == len(little_pickle)
    path.write_bytes(planted)
    assert "'builtins.compiles_'" in refused(path)


def test_files_that_are_no_snapshot_are_refused_in_one_line(little_pickle: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    torch.save({"a": torch.zeros(2)}, tmp_path / "new.pt")
    contents = {
        b"": "no pickle",
        b"hello, world\n" * 50: "no pickle",
        (tmp_path / "new.pt").read_bytes(): "no pickle",
        little_pickle[: len(little_pickle) // 2]: "cut off",
        little_pickle[:-1]: "cut off",
        pickle.dumps([1, 2]): "something else than a dictionary",
        pickle.dumps({}): "no network",
        pickle.dumps({"G": None, "G_ema": {"a": 1}}): "no network",
        pickle.dumps({1: 2}): "keys are not all text",
        little_pickle.replace(b"\x8c\x0aresolutionK\x10", b"\x8c\x0aresolutionK\x11"): "Generator",
    }
    for content, wanted in contents.items():
        path.write_bytes(content)
        assert wanted in refused(path)


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "is no file" in refused(tmp_path / "absent.pkl")
    assert "is no file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.pkl")
    assert "is no file" in refused(tmp_path / "pipe.pkl")


def test_larger_files_are_refused_before_they_are_parsed(little_pickle: bytes, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(little_pickle)
    assert read_snapshot(path, size_limit=len(little_pickle)).networks
    path.write_bytes(b"no pickle either")
    with pytest.raises(SnapshotError, match="more than 15 bytes"):
        read_snapshot(path, size_limit=15)


def test_the_training_set_is_a_dictionary_of_plain_values(little_snapshot: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pkl"
    for value in ([1], {"a": float("nan")}, 3):
        path.write_bytes(pickle.dumps(little_snapshot | {"training_set_kwargs": value}))
        refused(path)


def test_networks_that_are_not_there_are_listed_and_the_source_is_not_overwritten(
    little_pickle: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(little_pickle)
    snapshot = read_snapshot(path)
    with pytest.raises(SnapshotError, match="'D': choose one of 'G', 'G_ema'"):
        save_imported(path, snapshot, tmp_path / "out", "D")
    with pytest.raises(SnapshotError, match="over the snapshot"):
        save_imported(path, snapshot, tmp_path / "." / "snapshot.pkl")
    assert path.read_bytes() == little_pickle


ARGUMENTS = {"z_dim": 8, "w_dim": 6, "c_dim": 0, "img_resolution": 16, "img_channels": 3}
ARGUMENTS |= {"channel_base": 64, "channel_max": 16, "mapping_kwargs": {"num_layers": 1}}


def generator_record(**arguments: Any) -> NetworkRecord:
    """The names and shapes on which claims are checked, and no others."""
    tensors = {
        "synthesis.input.freqs": torch.zeros(16, 2),
        "synthesis.input.weight": torch.zeros(16, 16),
        "synthesis.L0_36_16.weight": torch.zeros(16, 16, 3, 3),
        "synthesis.L0_36_16.magnitude_ema": torch.zeros(()),
        "synthesis.L14_16_3.weight": torch.zeros(3, 8, 1, 1),
        "synthesis.L14_16_3.magnitude_ema": torch.zeros(()),
        "mapping.w_avg": torch.zeros(6),
        "mapping.fc0.weight": torch.zeros(6, 8),
        "mapping.fc0.bias": torch.zeros(6),
    }
    return NetworkRecord("Generator", ARGUMENTS | arguments, tensors, 0)


def test_claims_that_fit_are_let_through() -> None:
    check_claims(generator_record())
    check_claims(generator_record(conv_kernel=3, use_radial_filters=False, magnitude_ema_beta=0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"z_dim": 10**9},
        {"w_dim": 10**9},
        {"c_dim": 10**9},
        {"img_resolution": 2**30},
        {"img_channels": 10**9},
        {"conv_kernel": 10**5},
        {"channel_base": 10**12, "channel_max": 10**12},
        {"channel_max": 10**300},
        {"channel_base": 10**400},
        {"mapping_kwargs": {"num_layers": 10**9}},
        {"mapping_kwargs": []},
        {"channel_base": "64"},
        {"z_dim": 8.0},
        {"c_dim": False},
        {"use_radial_filters": [1]},
        {"magnitude_ema_beta": 1.5},
        {"magnitude_ema_beta": "a"},
    ],
    ids=str,
)
def test_claims_that_do_not_fit_are_refused(arguments: dict[str, Any]) -> None:
    if arguments == {"channel_max": 10**300}:
        # The base alone bounds the channels.
        check_claims(generator_record(**arguments))
        return
    with pytest.raises(SnapshotError, match="its generator's"):
        check_claims(generator_record(**arguments))


def test_missing_tensors_arguments_and_infinite_weights_are_refused() -> None:
    for name in ("mapping.w_avg", "mapping.fc0.weight", "synthesis.input.weight", "synthesis.L0_36_16.magnitude_ema"):
        record = generator_record()
        del record.tensors[name]
        with pytest.raises(SnapshotError):
            check_claims(record)
    for name in ("z_dim", "img_resolution"):
        record = generator_record()
        del record.arguments[name]
        with pytest.raises(SnapshotError, match="not those of StyleGAN3"):
            check_claims(record)
    record = generator_record()
    record.tensors["mapping.fc0.bias"][2] = float("nan")
    with pytest.raises(SnapshotError, match=r"'mapping\.fc0\.bias' holds NaN"):
        check_claims(record)


def test_other_generators_are_refused(little_pickle: bytes, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(little_pickle)
    assert "no StyleGAN3 generator" in refused(path)
    linear = NetworkRecord("Discriminator", {}, dict(nn.Linear(1, 1).state_dict()), 2)
    with pytest.raises(SnapshotError, match="'Discriminator' is no StyleGAN3 generator"):
        save_imported(path, Snapshot({"D": linear}, None, None), tmp_path / "out", "D")
    assert not (tmp_path / "out").exists()

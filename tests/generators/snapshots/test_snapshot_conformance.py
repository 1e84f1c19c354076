"""The snapshot that official StyleGAN3 training wrote, against the sums and images of the official networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shadow_defense.generators.build import load_generator
from shadow_defense.generators.snapshots.importing import Snapshot, import_snapshot, read_snapshot

IMAGE_TOLERANCE = 2e-4
"""Of the images' standard deviation."""


@pytest.fixture(scope="module")
def case(conformance: Path) -> dict[str, np.ndarray]:
    path = conformance / "stylegan3" / "snapshot_tiny.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def snapshot(conformance: Path, case: dict[str, np.ndarray]) -> Snapshot:
    return read_snapshot(conformance / "stylegan3" / "snapshot_tiny.pkl")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["G", "G_ema"])
def test_conformance_stylegan3_snapshot_tensors(network: str, case: dict[str, np.ndarray], snapshot: Snapshot) -> None:
    prefix = f"{network}/sd_sum/"
    expected = {key.removeprefix(prefix): value for key, value in case.items() if key.startswith(prefix)}
    tensors = snapshot.networks[network].tensors
    assert len(expected) == 114
    # The order too: the case's keys stand in the official one.
    assert list(tensors) == list(expected)
    for name, (total, squares) in expected.items():
        values = tensors[name].double()
        assert float(values.square().sum()) == pytest.approx(squares, rel=1e-9), name
        assert float(values.sum()) == pytest.approx(total, rel=1e-9, abs=1e-9 * max(1.0, squares)), name


def test_conformance_stylegan3_snapshot_facts(case: dict[str, np.ndarray], snapshot: Snapshot) -> None:
    assert list(snapshot.networks) == ["G", "D", "G_ema", "augment_pipe"]
    record = snapshot.networks["G_ema"]
    assert record.class_name == "Generator"
    assert record.arguments["img_resolution"] == 64
    assert record.arguments["channel_base"] == 2048
    assert record.arguments["mapping_kwargs"] == {"num_layers": 2}
    assert tuple(record.tensors["synthesis.L14_64_3.weight"].shape) == (3, 32, 1, 1)
    assert snapshot.networks["D"].class_name == "Discriminator"
    assert "b4.out.weight" in snapshot.networks["D"].tensors
    assert snapshot.augment_probability == pytest.approx(float(case["augment_p"]))
    assert snapshot.training_set is not None
    assert snapshot.training_set["max_size"] == 1000


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - theirs).max() / theirs.std())


@pytest.mark.slow
@pytest.mark.parametrize("network", ["G", "G_ema"])
def test_conformance_stylegan3_snapshot_images(
    network: str, case: dict[str, np.ndarray], conformance: Path, tmp_path: Path
) -> None:
    """Through the file that the import writes: the same images as the official networks."""
    out = tmp_path / "generator.safetensors"
    import_snapshot(conformance / "stylegan3" / "snapshot_tiny.pkl", out, network)
    generator = load_generator(out)
    z = torch.from_numpy(case["z"])
    with torch.no_grad():
        assert relative_error(generator(z), case[f"{network}/img_psi1"]) < IMAGE_TOLERANCE
        assert relative_error(generator(z, psi=0.7), case[f"{network}/img_psi0.7"]) < IMAGE_TOLERANCE
        assert relative_error(generator.encode(z, "w"), case[f"{network}/ws0"]) < IMAGE_TOLERANCE

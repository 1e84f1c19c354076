"""A protected folder trains as any folder does: in plain PyTorch, and in a run of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from shadow_defense.data.build import load_dataset
from shadow_defense.data.settings import DataSettings
from shadow_defense.experiment.protecting import protecting
from shadow_defense.experiment.protecting.protecting import protect_data
from shadow_defense.progress import Progress
from tests.experiment.protecting.conftest import FOUND, labelled, request_for, write_npz


@pytest.fixture
def unaudited(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    monkeypatch.setattr(protecting, "audit_protection", lambda *_: FOUND)


def protected(out: Path, source: Path, **changes: Any) -> Path:
    out.mkdir()
    protect_data(request_for(source, **changes), out, command="shadow-defense protect", progress=Progress())
    return out


class Folder(Dataset[tuple[Tensor, int]]):
    """As torchvision's ImageFolder: classes are folders in their order; a transform with augmentation."""

    def __init__(self, root: Path, augment: bool) -> None:
        names = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.files = [(path, label) for label, name in enumerate(names) for path in sorted((root / name).iterdir())]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("L")))[None].float() / 255
        shift = int(torch.randint(-1, 2, ())) if self.augment else 0
        return pixels.roll(shift, dims=2) - 0.5, label


@pytest.mark.slow
@pytest.mark.parametrize("texture", ["white", "task"])
def test_in_plain_pytorch_with_adam_augmentation_and_mixed_precision(
    hospital: Path, tmp_path: Path, unaudited: None, texture: str
) -> None:
    for part, seed, count in (("train", 31, 80), ("test", 32, 40)):
        for place, image in enumerate(labelled(count, seed)[0]):
            target = tmp_path / "data" / part / ("ill" if place % 2 else "well") / f"{place:02d}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target, quality=95)
    settings = {"texture": texture, "strength": 0.1 if texture == "white" else 1.0, "directions": 2}
    out = protected(tmp_path / "out", tmp_path / "data", public=str(hospital / "public.npz"), settings=settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten(), nn.Linear(800, 2))
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(8):
            for images, labels in DataLoader(Folder(out / "train", augment=True), batch_size=16, shuffle=True):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(images), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    model.eval()
    images, labels = next(iter(DataLoader(Folder(out / "test", augment=False), batch_size=40)))
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).float().mean()
    assert right > 0.8


def test_a_run_reads_it_as_it_reads_the_clean_one(hospital: Path, tmp_path: Path, unaudited: None) -> None:
    groups = np.array([f"patient {place // 2}" for place in range(60)])
    source = write_npz(tmp_path / "data.npz", 60, 30, train_groups=groups)
    out = protected(tmp_path / "out", source, public=str(hospital / "public.npz"), settings={"texture": "white"})
    clean, same = (
        load_dataset(DataSettings(source="npz", path=path, image_size=12, split={"kind": "iid", "clients": 3}), 0)
        for path in (source, out / "data.npz")
    )
    for one, other in zip(clean.clients, same.clients, strict=True):
        assert one.train.sample_ids == other.train.sample_ids
        assert torch.equal(one.train.labels, other.train.labels)
        assert one.train.groups == other.train.groups
        assert not torch.equal(one.train.images, other.train.images)
    assert torch.equal(clean.test.images, same.test.images)

"""The demo's real images: whole patches of a fundus, and a radiograph that lies at one client alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from skimage.data import retina

from shadow_defense.data import radiograph
from shadow_defense.data.build import load_dataset
from shadow_defense.data.dicom_image import DicomImage
from shadow_defense.data.fundus import SIDE, read_fundus
from shadow_defense.data.radiograph import SIZES, read_radiograph
from shadow_defense.data.settings import DataSettings, SplitSettings
from shadow_defense.errors import DataError


def test_fundus_patches_are_pieces_of_the_photograph() -> None:
    train = read_fundus(image_size=None, channels=None).train
    assert train.images.shape[1:] == (3, SIDE, SIDE)
    corner = torch.from_numpy(retina()).permute(2, 0, 1)[:, 8 * SIDE : 9 * SIDE, 8 * SIDE : 9 * SIDE]
    assert int((train.images == corner).flatten(1).all(dim=1).sum()) == 1
    assert len(train.images.unique(dim=0)) == len(train) > 100, "none stands twice, as overlapping ones would in part"
    assert train.images.amax(dim=1).float().flatten(1).amin() > 25, "none touches the black rim"
    deviations = train.images[:, 1].float().flatten(1).std(dim=1)
    assert deviations[train.labels == 1].min() > deviations[train.labels == 0].max()


def test_the_radiograph_is_the_first_clients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read = DicomImage(torch.arange(100 * 90).reshape(1, 1, 100, 90).remainder(256).byte(), "somebody")
    monkeypatch.setattr(radiograph, "find_radiograph", lambda: Path("radiograph.dcm"))
    monkeypatch.setattr(radiograph, "read_dicom", lambda path, grey_range: read)
    settings = DataSettings(source="radiograph", images=200, split=SplitSettings(kind="given"))
    data = load_dataset(settings, 0)
    assert [len(client.train) for client in data.clients] == list(SIZES)
    assert data.clients[0].train.sample_ids == ("radiograph",)
    others = [*(client.train for client in data.clients[1:]), data.public, data.test]
    assert all(sample.startswith("chest") for part in others for sample in part.sample_ids)
    assert len(data.public) >= 50, "protecting once needs so many"


def test_without_the_package_it_says_so_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radiograph, "find_radiograph", lambda: None)
    with pytest.raises(DataError, match=r"pip install 'shadow-defense\[radiograph\]', or take source chest_phantom"):
        read_radiograph(images=200, image_size=32, channels=None, seed=0)
    monkeypatch.setattr(radiograph, "find_radiograph", lambda: Path("x.dcm"))
    with pytest.raises(DataError, match=r"data.images 100: expected at least 162"):
        read_radiograph(images=100, image_size=32, channels=None, seed=0)

"""From settings to clients: parts, notes, normalisation, and the one line for each wrong setting."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shadow_defense.data.build import load_dataset
from shadow_defense.data.dataset import FederatedDataset, Normalisation, measure_contrast, measure_normalisation
from shadow_defense.data.duplicates import count_shared
from shadow_defense.data.faces import read_faces
from shadow_defense.data.settings import DataSettings, SplitSettings
from shadow_defense.data.sources import SOURCES
from shadow_defense.data.summary import summarise
from shadow_defense.errors import DataError


def load(seed: int = 0, split: dict[str, Any] | None = None, **options: Any) -> FederatedDataset:
    return load_dataset(DataSettings(split=SplitSettings(**(split or {})), **options), seed)


def ids(dataset: FederatedDataset) -> dict[str, set[str]]:
    return {
        "train": {name for client in dataset.clients for name in client.train.sample_ids},
        "validation": {name for client in dataset.clients for name in client.validation.sample_ids},
        "test": {name for client in dataset.clients for name in client.test.sample_ids},
        "public": set(dataset.public.sample_ids),
    }


def write_npz(folder: Path, name: str = "set.npz", **changes: Any) -> Path:
    random = np.random.default_rng(1)
    content = {
        "train_images": random.integers(0, 256, (60, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(60) % 2,
        "test_images": random.integers(0, 256, (20, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(20) % 2,
    }
    np.savez(folder / name, **{**content, **changes})
    return folder / name


def test_faces_are_faces() -> None:
    parts = read_faces(image_size=None, channels=None)
    assert parts.class_names == ("other", "face") and parts.train.images.shape == (200, 1, 25, 25)
    face, other = (parts.train.unit_images()[parts.train.labels == label] for label in (1, 0))

    def likeness(images: torch.Tensor) -> torch.Tensor:
        """Correlation of the middle of each image with the mean of the others; borders are black padding."""
        flat = images[:, :, 5:20, 5:20].flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        return torch.nn.functional.cosine_similarity(flat, (flat.sum(0) - flat) / (len(flat) - 1))

    # Aligned faces all resemble the mean of the other faces; pieces of background have no common shape.
    assert (likeness(face) > 0).all() and (likeness(other) < 0).sum() > 20


def test_default_data_set() -> None:
    dataset = load()
    parts = ids(dataset)
    assert {name: len(found) for name, found in parts.items()} == {
        "train": 90,
        "validation": 22,
        "test": 40,
        "public": 48,
    }
    assert len(set.union(*parts.values())) == 200
    assert dataset.test.labels.float().mean() == 0.5 and dataset.public.labels.float().mean() == 0.5
    assert parts["test"] == set(dataset.test.sample_ids)
    assert {len(client.test) for client in dataset.clients} == {4, 5}
    assert {len(client.validation) for client in dataset.clients} == {2, 3}
    assert dataset.normalisation == measure_normalisation(dataset.public)
    assert "shrunk in proportion to 90" in dataset.notes[0]
    single = dataset.clients[-1]
    assert len(single.train) == single.batch_size == 1 and single.train.labels.tolist() == [1]


def test_contrast_is_that_of_the_pixels_in_units_of_the_normalisation() -> None:
    dataset = load()
    assert measure_contrast(dataset.public, dataset.normalisation) == pytest.approx(1)
    conventional = Normalisation((0.5,), (0.25,))
    pixels = conventional.apply(dataset.public.unit_images())
    by_hand = pixels.double().square().mean().sqrt().item()
    assert measure_contrast(dataset.public, conventional) == pytest.approx(by_hand, rel=1e-6)


def test_same_seed_same_data_and_ids_stay_with_their_images() -> None:
    first, again, other = load(0), load(0), load(1)
    assert ids(first) == ids(again) and ids(first)["test"] != ids(other)["test"]
    images = {
        name: image
        for client in first.clients
        for name, image in zip(client.train.sample_ids, client.train.images, strict=True)
    }
    for client in other.clients:
        for name, image in zip(client.train.sample_ids, client.train.images, strict=True):
            assert name not in images or torch.equal(images[name], image)


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_other_splits_deal_everything(kind: str) -> None:
    dataset = load(split={"kind": kind, "clients": 5})
    assert sum(len(client.train) for client in dataset.clients) == 90 and not dataset.notes


def test_phantoms_carry_masks_into_every_part() -> None:
    dataset = load(source="fundus_phantom", images=60, image_size=32, split={"kind": "iid", "clients": 3})
    assert dataset.channels == 3 and len(dataset.normalisation.mean) == 3
    for images in (dataset.test, dataset.public, *(client.train for client in dataset.clients)):
        assert images.masks is not None
        assert torch.equal(images.masks.flatten(1).any(1), images.labels == 1)


def test_public_images_from_elsewhere_are_not_cut_from_the_clients(tmp_path: Path) -> None:
    dataset = load(public_source="chest_phantom", images=30)
    assert len(ids(dataset)["train"]) + len(ids(dataset)["validation"]) == 160
    assert len(dataset.public) == 30 and dataset.public.image_size == (32, 32)
    assert all(name.startswith("public/chest/") for name in dataset.public.sample_ids)
    itself = load(source="chest_phantom", public_source="chest_phantom", images=30, split={"kind": "iid"})
    assert len(itself.public) == 30 and not itself.notes
    path = write_npz(tmp_path)
    same = load(source="npz", path=path, public_path=path, image_size=None, split={"kind": "iid", "clients": 2})
    assert len(same.public) == 0 and "80 public images dropped" in same.notes[0]


def test_public_duplicates_are_dropped(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    images[30:] = images[:30]
    path = write_npz(tmp_path, train_images=images)
    dataset = load(source="npz", path=path, image_size=None, split={"kind": "iid", "clients": 2})
    others = torch.cat(
        [
            dataset.test.images,
            *(c.train.images for c in dataset.clients),
            *(c.validation.images for c in dataset.clients),
        ]
    )
    assert len(dataset.public) < 18 and count_shared(dataset.public.images, others) == 0
    summary = summarise(dataset)
    assert all("public" not in pair for pair in summary["duplicates"])
    held = [client.train.images for client in dataset.clients]
    kept = [client.validation.images for client in dataset.clients]
    assert summary["duplicates"]["train in validation"] == count_shared(torch.cat(held), torch.cat(kept)) > 0


def test_without_public_images_the_clients_are_measured() -> None:
    dataset = load(public_fraction=0.0, split={"kind": "iid", "clients": 2})
    assert len(dataset.public) == 0
    unit = torch.cat([client.train.unit_images() for client in dataset.clients])
    assert dataset.normalisation.mean[0] == pytest.approx(unit.mean().item(), abs=1e-5)
    assert dataset.normalisation.std[0] == pytest.approx(unit.std(correction=0).item(), abs=1e-5)


def test_given_normalisation_wins_and_must_fit() -> None:
    dataset = load(channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0))
    assert dataset.normalisation.mean == (0.1, 0.2, 0.3) and dataset.normalisation.std == (1.0, 1.0, 2.0)
    for wrong in ({"mean": (0.1, 0.2)}, {"std": (0.0,)}):
        with pytest.raises(DataError, match="expected 1 numbers each"):
            load(**wrong)


def test_limit_counts_training_images_before_the_cuts() -> None:
    dataset = load(limit=40, split={"kind": "iid", "clients": 2})
    assert sum(len(found) for found in ids(dataset).values()) == 40


def test_clients_of_a_manifest_keep_every_client(tmp_path: Path) -> None:
    from PIL import Image

    lines = ["path,label,client,patient"]
    for index in range(40):
        name = f"{index}.png"
        Image.new("L", (8, 8), 6 * index).save(tmp_path / name)
        lines.append(f"{name},{index % 2},{'small' if index >= 36 else f'big-{index % 3}'},p{index}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    options: dict[str, Any] = {"source": "manifest", "path": tmp_path / "list.csv", "image_size": 8}
    dataset = load(split={"kind": "given"}, **options)
    assert [client.name for client in dataset.clients] == ["big-0", "big-1", "big-2", "small"]
    assert {int(name[:-4]) for name in dataset.clients[3].train.sample_ids} <= {36, 37, 38, 39}
    text = (tmp_path / "list.csv").read_text().replace("39.png,1,small", "39.png,1,lonely")
    (tmp_path / "list.csv").write_text(text)
    assert "lonely" in [client.name for client in load(split={"kind": "given"}, **options).clients]
    with pytest.raises(DataError, match=r"client '.*' has no images left to train on"):
        load(split={"kind": "given"}, public_fraction=0.9, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "face"}, r"unknown source 'face': did you mean 'faces'\? valid are: bloodmnist, .*npz"),
        ({"source": "npz"}, r"source 'npz' needs data\.path"),
        ({"source": "npz", "path": Path("nowhere.npz")}, r"nowhere\.npz does not exist: correct the path"),
        ({"source": "manifest", "path": Path("nowhere.csv")}, r"nowhere\.csv"),
        ({"source": "image_folder", "path": Path("nowhere")}, "nowhere is not a folder"),
        ({"path": Path("x")}, r"source 'faces' takes no data\.path"),
        ({"classes": ("a", "b")}, r"source 'faces' takes no data\.classes"),
        ({"public_source": "npz"}, r"source 'npz' needs data\.path"),
        ({"split": {"kind": "patient"}}, "needs patients"),
        ({"split": {"kind": "iid", "clients": 500}}, "client 'client-091' would get no images: 90 training images"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_every_source_asks_only_for_what_the_settings_have() -> None:
    known = {"path", "image_size", "channels", "classes", "grey_range", "limit", "images", "seed", "source"}
    for name, source in SOURCES.items():
        # Of a folder of images and of one of DICOM, which one function reads.
        assert set(source.accepts) - {"suffixes"} <= known, name
        assert "\n" not in source.summary and len(source.summary) < 100


def test_summary_adds_up_and_is_plain() -> None:
    summary = summarise(load())
    assert sum(client["train"] for client in summary["clients"]) == 90
    assert summary["clients"][0]["train by class"] == {"other": 0, "face": 1}
    assert summary["public"] == 48 and summary["test"] == 40 and summary["duplicates"] == {}
    import json

    assert json.loads(json.dumps(summary)) == summary and "patients" not in summary


def test_real_x_rays_by_patient(shared_data: Path) -> None:
    dataset = load(
        source="npz",
        path=shared_data / "cxr_kermany_64.npz",
        classes=("normal", "pneumonia"),
        limit=1500,
        split={"kind": "patient", "clients": 6},
    )
    holders = [
        set(client.train.groups) | set(client.validation.groups) | set(client.test.groups) for client in dataset.clients
    ]
    assert all(not one & other for index, one in enumerate(holders) for other in holders[index + 1 :])
    # No patient of the public part or of the test part is known from training.
    train = set().union(*(client.train.groups for client in dataset.clients))
    assert not train & set(dataset.public.groups) and not train & set(dataset.test.groups)
    sizes = sorted(len(client.train) for client in dataset.clients)
    assert sizes[-1] - sizes[0] <= 1
    assert summarise(dataset)["patients at two clients"] == 0
    # The public share is by whole patients and comes close to the 30 % of the settings.
    assert 440 <= len(dataset.public) <= 450


@pytest.mark.slow
def test_real_folder_at_64_px(shared_data: Path) -> None:
    dataset = load(source="image_folder", path=shared_data / "cxr_kermany_224", image_size=64, channels=1, limit=2500)
    assert [len(client.train) for client in dataset.clients] == [8, 32, 128, 512, 8, 32, 128, 512, 1]
    for client in dataset.clients[:-1]:
        assert client.train.labels.float().mean() == 0.5
    assert len(dataset.test) == 624 and dataset.class_names == ("NORMAL", "PNEUMONIA")
    # 624 test images over nine clients: 69 or 70 each.
    assert {len(client.test) for client in dataset.clients} == {69, 70}
    assert all(one.train.image_size == other.train.image_size for one, other in pairwise(dataset.clients))
    # The same X-rays as in the file at 64 px, made by other means: means within one level.
    with np.load(shared_data / "cxr_kermany_64.npz") as archive:
        reference = archive["test_images"].mean()
    assert abs(dataset.test.images.float().mean().item() - reference) < 1

"""Every kind of data set that is read comes out as it came in, with other pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shadow_defense.errors import ConfigError, DataError
from shadow_defense.experiment.protecting.layouts import Layout, read_layout, target_of
from shadow_defense.experiment.protecting.material import read_material
from tests.data.test_dicom import WINDOW
from tests.data.test_dicom import write as write_dicom
from tests.experiment.protecting.conftest import labelled, request_for

PIXELS, _ = labelled(40, 3)
DEEP = PIXELS.astype(np.uint16) * 257


def read(where: Path | str) -> Layout:
    return read_layout(str(where), None, None, 0)


def darkened(layout: Layout, kept: list[int], out: Path) -> dict[str, Tensor]:
    """Write every picture at half its brightness, two at a time; returns what was written."""
    pictures = {
        name: each.subset(kept).unit_images() / 2 if name == "train" else each.unit_images() / 2
        for name, each in layout.sets().items()
    }
    layout.write(out, {name: images.split(2) for name, images in pictures.items()}, kept)
    return pictures


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as text:
        return list(csv.DictReader(text))


def manifest(folder: Path, header: str, lines: list[str]) -> Path:
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    for place in range(8):
        Image.fromarray(DEEP[place] if place % 2 else PIXELS[place]).save(folder / "scans" / f"{place}.png")
    path = folder / "list.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
    return path


def test_a_csv_keeps_its_lines_and_each_png_its_bits(tmp_path: Path) -> None:
    lines = [
        f"scans/{place}.png,{'ill' if place % 2 else 'well'},p{place},{split}"
        for place, split in enumerate(["train", "train", "train", "train", "val", "test", "public", "test"])
    ]
    layout = read(manifest(tmp_path / "in", "path, label, patient, split", lines))
    written = darkened(layout, [0, 3], tmp_path / "out")
    found = rows(tmp_path / "out" / "list.csv")
    assert [",".join(row.values()) for row in found] == [
        line for place, line in enumerate(lines) if place not in (1, 2)
    ]
    assert not (tmp_path / "out" / "scans" / "1.png").exists()
    for place, mode, levels in ((0, "L", 255), (3, "I;16", 65535)):
        with Image.open(tmp_path / "out" / "scans" / f"{place}.png") as image:
            assert image.mode == mode
            wanted = (written["train"][[0, 3].index(place), 0] * levels).round()
            assert np.abs(np.asarray(image).astype(float) - wanted.numpy()).max() <= 1
    # What was written reads back as the same parts.
    again = read(tmp_path / "out" / "list.csv")
    assert {name: len(each) for name, each in again.sets().items()} == {
        "train": 2, "validation": 1, "test": 2, "public": 1,
    }  # fmt: skip


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    path = manifest(tmp_path / "in", "path,label", [f"../in/scans/{place}.png,{place % 2}" for place in range(4)])
    darkened(read(path), [0, 1, 2, 3], tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").rglob("*.png")) == ["0.png", "1.png", "2.png", "3.png"]
    assert rows(tmp_path / "out" / "list.csv")[1] == {"path": "in/scans/1.png", "label": "1"}
    assert target_of("/a/../b.dcm") == "a/b.png"


@pytest.mark.parametrize(
    ("header", "line", "wanted"),
    [
        ("path,label,age", "scans/{}.png,{},{}", "has a column 'age'"),
        ("path,label", "scans/{}.png,{},{}", "has a column 'None'"),
    ],
)
def test_other_columns_are_not_passed_on(tmp_path: Path, header: str, line: str, wanted: str) -> None:
    path = manifest(tmp_path, header, [line.format(place, place % 2, 70 + place) for place in range(4)])
    with pytest.raises(DataError, match=wanted):
        read(path)


def test_two_images_that_would_be_one_are_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label", [f"scans/{place}.png,{place % 2}" for place in range(4)])
    Image.fromarray(PIXELS[0]).save(tmp_path / "scans" / "0.tif")
    path.write_text(path.read_text() + "scans/0.tif,1\n")
    with pytest.raises(DataError, match=r"would both become 'scans/0\.png'"):
        read(path)


def test_dicom_becomes_png_with_a_list_of_numbered_patients(tmp_path: Path) -> None:
    ramp = np.arange(-1024, 3072, 16, dtype=np.int16).reshape(16, 16)
    for place in range(6):
        part, name = ("train", "test")[place == 5], ("ill", "well")[place % 2]
        pixels = np.roll(ramp, place)
        write_dicom(tmp_path / "in" / part / name / f"{place}.dcm", pixels, **WINDOW, PatientID=f"MRN {place // 2}")
    write_dicom(tmp_path / "in" / "test" / "ill" / "7.dcm", ramp, **WINDOW, PatientID="MRN 2")
    layout = read(tmp_path / "in")
    darkened(layout, [0, 1, 2, 4], tmp_path / "out")
    found = {row["path"]: row for row in rows(tmp_path / "out" / "manifest.csv")}
    assert {(row["label"], row["split"]) for row in found.values()} == {
        ("ill", "train"), ("well", "train"), ("ill", "test"), ("well", "test"),
    }  # fmt: skip
    assert found["train/ill/4.png"]["patient"] == found["test/well/5.png"]["patient"]
    assert all(row["patient"] in {"1", "2", "3"} for row in found.values())
    assert len(found) == 6
    assert "MRN" not in (tmp_path / "out" / "manifest.csv").read_text()
    with Image.open(tmp_path / "out" / "train" / "ill" / "0.png") as image:
        assert image.mode == "I;16"


def test_pictures_and_dicom_together_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "ill" / "0.dcm", np.zeros((16, 16), np.uint8))
    Image.fromarray(PIXELS[0]).save(tmp_path / "ill" / "1.png")
    with pytest.raises(DataError, match="holds pictures and DICOM"):
        read(tmp_path)


@pytest.mark.slow
def test_a_source_without_files_becomes_an_npz(tmp_path: Path) -> None:
    layout = read_layout("chest_phantom", 16, None, 0)
    darkened(layout, list(range(50)), tmp_path)
    with np.load(tmp_path / "chest_phantom.npz") as arrays:
        assert arrays["train_images"].shape == (50, 16, 16)
        assert np.array_equal(arrays["train_labels"][:, 0], layout.parts.train.labels[:50].numpy())


def test_floats_of_an_npz_are_not_rounded_to_bytes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "in.npz", train_images=(PIXELS / 255).astype(np.float32), train_labels=np.arange(40)[:, None] % 2
    )
    written = darkened(read(tmp_path / "in.npz"), list(range(40)), tmp_path / "out")
    with np.load(tmp_path / "out" / "in.npz") as arrays:
        assert arrays["train_images"].dtype == np.float32
        assert torch.equal(torch.from_numpy(arrays["train_images"]), written["train"][:, 0])


def test_public_images_may_be_of_another_kind(tmp_path: Path, hospital: Path) -> None:
    """A CSV with names for labels, and a folder of DICOM, beside an .npz."""
    others, _ = labelled(60, 4)
    lines = []
    for place, pixels in enumerate(others):
        Image.fromarray(pixels).resize((24, 24)).save(tmp_path / f"{place}.png")
        lines.append(f"{place}.png,{'abc'[place % 3]}")
        write_dicom(tmp_path / "dicom" / ("ill", "well")[place % 2] / f"{place}.dcm", pixels)
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    for public, classes in ((tmp_path / "list.csv", 3), (tmp_path / "dicom", 2)):
        _, _, material = read_material(request_for(hospital / "private.npz", public=str(public)))
        assert material.public.images.shape == (60, 1, 12, 12)
        assert material.public.classes == classes


def test_lines_of_split_public_are_public(tmp_path: Path, hospital: Path) -> None:
    lines = []
    for place, pixels in enumerate(labelled(80, 5)[0]):
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
        lines.append(f"{place}.png,{place % 2},{'public' if place < 55 else 'train'}")
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["path,label,split", *lines]))
    _, kept, material = read_material(request_for(path))
    assert (len(kept), len(material.public.images), material.spent) == (25, 55, 0)
    with pytest.raises(ConfigError, match="the lines of split public are its public images"):
        read_material(request_for(path, public=str(hospital / "public.npz")))

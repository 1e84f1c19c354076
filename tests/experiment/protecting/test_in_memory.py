"""What Python programs protect comes back as it was given, the same for ever, with a certificate."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import shadow_defense
from shadow_defense.errors import ConfigError, DataError, ShadowDefenseError
from shadow_defense.experiment.protecting import in_memory
from tests.experiment.protecting.conftest import FOUND, NUMBERS, QUICK, labelled

IMAGES, LABELS = labelled(60, 10)
PUBLIC, PUBLIC_LABELS = labelled(120, 20)


@pytest.fixture
def unaudited(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    monkeypatch.setattr(in_memory, "audit_protection", lambda *_: FOUND)


def protect(images: Any, labels: Any = None, **changes: Any) -> tuple[Any, shadow_defense.Certificate]:
    given = {"public": PUBLIC, "public_labels": PUBLIC_LABELS, "preset": "white", "strength": 0.2, **changes}
    return shadow_defense.protect(images, labels, **given)


def test_a_certificate_of_arrays(site: Path, quick: None, tmp_path: Path) -> None:
    """Steps 2 and 3 as a person would: protect, look, save."""
    protected, certificate = protect(IMAGES, LABELS, **QUICK)
    assert (protected.shape, protected.dtype) == (IMAGES.shape, np.uint8)
    # White noise of 0.2 clipped to [0, 1] and rounded.
    assert 35 < (protected.astype(float) - IMAGES).std() < 55
    assert not certificate.withheld
    assert certificate.worst["psnr"].count == 40
    assert repr(certificate).startswith("Certificate(best remover ")
    assert len(repr(certificate)) < 120
    certificate.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "certificate.json").read_text()) == json.loads(
        json.dumps(certificate.as_dict())
    )
    assert (tmp_path / "out" / "certificate.html").exists()
    assert torch.equal(certificate.transform(torch.ones(2, 1, 12, 12)), torch.ones(2, 1, 12, 12))


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "grey bytes": lambda images: images,
    "bytes, channels first": lambda images: images[:, None],
    "bytes, channels last": lambda images: images[..., None],
    "floats": lambda images: (images / 255).astype(np.float64),
    "byte tensor": lambda images: torch.from_numpy(images)[:, None],
    "half tensor": lambda images: (torch.from_numpy(images) / 255).half(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_they_come_back_as_they_were_given(unaudited: None, kind: str) -> None:
    given = KINDS[kind](IMAGES)
    protected, _ = protect(given)
    assert type(protected) is type(given)
    assert (protected.shape, protected.dtype) == (given.shape, given.dtype)
    plain, _ = protect(IMAGES)
    scale = 255 if "half" in kind or kind == "floats" else 1
    difference = np.asarray(protected, np.float64).reshape(plain.shape) * scale - plain
    assert np.abs(difference).max() <= (1 if scale == 255 else 0)


def test_a_data_set_is_protected_when_it_is_asked_and_kept(unaudited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    items = TensorDataset(torch.from_numpy(IMAGES)[:, None].float() / 255, torch.from_numpy(LABELS[:, 0]))
    first, certificate = protect(items, public=TensorDataset(torch.from_numpy(PUBLIC)[:, None]), public_labels=None)
    assert certificate.record.counts.protected == len(first) == 60
    image, label = first[7]
    assert (image.shape, image.dtype, int(label)) == ((1, 12, 12), torch.float32, LABELS[7, 0])
    assert first[7][0] is image
    batch, labels = next(iter(DataLoader(first, batch_size=8, num_workers=0)))
    assert torch.equal(batch[7], image)
    assert torch.equal(labels, torch.from_numpy(LABELS[:8, 0]))
    # The same again in another program of the same site, and as an array.
    again, _ = protect(items)
    assert torch.equal(again[7][0], image)
    whole, _ = protect(torch.from_numpy(IMAGES)[:, None].float() / 255)
    assert torch.equal(whole[7], image)
    with pytest.raises(IndexError):
        first[60]


def test_pictures_come_back_as_pictures(unaudited: None) -> None:
    items = [(Image.fromarray(image), int(label)) for image, label in zip(IMAGES, LABELS[:, 0], strict=True)]
    protected, _ = protect(items)
    picture, label = protected[3]
    assert (picture.mode, picture.size, label) == ("L", (12, 12), 1)
    assert np.array_equal(np.asarray(picture), protect(IMAGES)[0][3])


def test_what_is_trained_on_is_mapped_and_so_is_the_test(unaudited: None) -> None:
    settings = {"preset": "recommended", "strength": 1.0, "directions": 4}
    protected, certificate = protect(torch.from_numpy(IMAGES)[:, None].float() / 255, LABELS, **settings)
    assert certificate.record.removal_written
    # The map takes four directions and no more: what it has mapped lies in a space of four dimensions.
    test = certificate.transform(torch.from_numpy(PUBLIC)[:, None].float() / 255).flatten(1)
    spread = torch.linalg.svdvals((test - test.mean(dim=0)).double())
    assert spread[4] < 1e-5 * spread[0]
    together = torch.cat([test[:30], protected[:30].flatten(1)])
    spread = torch.linalg.svdvals((together - together.mean(dim=0)).double())
    assert spread[4] < 1e-5 * spread[0]


class _Augmented(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return (torch.rand(1, 12, 12),)


@pytest.mark.parametrize(
    ("given", "changes", "wanted"),
    [
        (_Augmented(torch.zeros(30)), {}, "gives another image each time"),
        (IMAGES[:5], {}, "5 images to protect: expected at least 20"),
        (IMAGES / 128, {}, "values outside"),
        (IMAGES.astype(int), {}, "of type int64: expected bytes"),
        (IMAGES[:, :, :, None].repeat(4, axis=3), {}, "expected .n, h, w., .n, c, h, w. or .n, h, w, c."),
        ("images", {}, "the image of item 0 is str: expected an array"),
        (IMAGES, {"labels": LABELS[:5]}, "expected 60 classes"),
        (IMAGES, {"labels": LABELS / 2}, "expected 60 classes"),
        (
            IMAGES,
            {"public": IMAGES, "public_labels": LABELS},
            r"60 of 60 public images are among those to protect \(public image '0' is '0' of them\)",
        ),
        (IMAGES, {"public": PUBLIC[:, :10]}, r"public images are \(1, 10, 12\)"),
        (
            IMAGES,
            {"public": PUBLIC[:20], "public_labels": PUBLIC_LABELS[:20]},
            "20 public images: expected at least 50",
        ),
        (IMAGES, {"public_labels": None, "preset": "recommended"}, "the public images have no labels"),
        (IMAGES, {"public": "nowhere"}, "public_labels go with an array"),
        (IMAGES, {"stength": 2}, "strength"),
        ([], {}, "the data set is empty"),
    ],
)
def test_bad_input_is_one_line(unaudited: None, given: Any, changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ShadowDefenseError, match=wanted):
        protect(given, **changes)


def test_an_unknown_preset_is_told(unaudited: None) -> None:
    with pytest.raises(ConfigError, match="did you mean 'white'"):
        shadow_defense.protect(IMAGES, public=PUBLIC, preset="wite")
    with pytest.raises(DataError, match="brings its labels"):
        protect([(IMAGES[0], 0)] * 30, LABELS[:30])


def test_the_first_example_of_the_readme(unaudited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert "shadow_defense.protect(" in code
    names = {"train_images": IMAGES, "train_labels": LABELS, "public_images": PUBLIC, "public_labels": PUBLIC_LABELS}
    exec(code, {**names, "test_images": torch.from_numpy(PUBLIC)[:, None].float() / 255})


@pytest.mark.usefixtures("unaudited")
def test_a_saved_certificate_is_read_again(tmp_path: Path) -> None:
    _, certificate = protect(IMAGES, LABELS)
    certificate.save(tmp_path)
    assert certificate.save_page(tmp_path / "page.html").read_text() == (tmp_path / "certificate.html").read_text()
    read = shadow_defense.open_results(tmp_path)
    assert read.record.removers == certificate.record.removers  # type: ignore[attr-defined]
    assert read.record.worst == NUMBERS and read.record.hashes == certificate.record.hashes  # type: ignore[attr-defined]


@pytest.mark.usefixtures("unaudited")
def test_a_certificate_as_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas: Any = ModuleType("pandas")
    pandas.DataFrame = dict
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame = protect(IMAGES, LABELS)[1].to_frame()
    assert frame["remover"].count("lmmse") == frame["remover"].count("worst") == len(NUMBERS)
    assert set(frame["low"]) == {0.4} and set(frame["images"]) == {20}

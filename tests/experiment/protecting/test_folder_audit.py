"""A protected folder is audited as it lies there, and with no other images than it was made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shadow_defense.attacks.removers import learned
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.experiment.protecting import folder_audit, protecting
from shadow_defense.experiment.protecting.folder_audit import FolderRequest, audit_folder
from shadow_defense.experiment.protecting.protecting import protect_data
from shadow_defense.experiment.protecting.settings import protect_preset
from shadow_defense.progress import Progress
from shadow_defense.report.records.certificate import Audited
from tests.experiment.protecting.conftest import FOUND, labelled, request_for, write_npz


def audit(protected: Path, truth: Path, public: Path | None, out: Path, texture: str | None = None) -> dict[str, Any]:
    quick = {"audited": 40, "remover_steps": 50, **({"strength": 0.3} if texture == "white" else {})}
    settings = protect_preset(texture or "recommended", **quick)
    request = FolderRequest(protected, str(truth), None if public is None else str(public), settings, bool(texture))
    return audit_folder(request, out, command="shadow-defense audit", progress=Progress())


@pytest.fixture
def noisy(hospital: Path, tmp_path: Path) -> Path:
    """Somebody else's protection: white noise of 0.3, in an archive."""
    with np.load(hospital / "private.npz") as arrays:
        given = dict(arrays)
    noise = 0.3 * np.random.default_rng(0).standard_normal(given["train_images"].shape)
    given["train_images"] = ((given["train_images"] / 255 + noise).clip(0, 1) * 255).round().astype(np.uint8)
    (tmp_path / "theirs").mkdir()
    np.savez(tmp_path / "theirs" / "private.npz", **given)
    return tmp_path / "theirs"


@pytest.mark.slow
def test_somebody_else_s_protection_told_and_not_told(
    hospital: Path, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Enough to break what must be broken, in half of the time.
    monkeypatch.setattr(learned, "BATCH_SIZE", 16)
    truth, public = hospital / "private.npz", hospital / "public.npz"
    told = audit(noisy, truth, public, tmp_path / "told", "white")
    blind = audit(noisy, truth, public, tmp_path / "blind")
    assert all(told["planted_breaks"].values())
    assert set(told["removers"]) == {"lmmse", "learned"}
    assert set(blind["removers"]) == {"as given", "learned"}
    # White noise of 0.3 is at 10.5 dB; clipping takes a little of it off.
    assert 10.4 < blind["removers"]["as given"]["psnr"]["mean"] < 11.5
    assert blind["floor"] is None
    assert blind["notes"][0].startswith("Nobody said how these images were protected")
    assert told["worst"]["psnr"]["mean"] > blind["worst"]["psnr"]["mean"] > 12
    assert told["linkage"]["rank1"]["mean"] >= blind["linkage"]["rank1"]["mean"]
    assert "Nobody said" in (tmp_path / "blind" / "certificate.html").read_text()
    assert json.loads((tmp_path / "told" / "certificate.json").read_text())["worst"] == told["worst"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the removers are handed, in place of their work."""
    handed: list[Any] = []

    def take(*given: Any) -> Audited:
        handed.append(given)
        return FOUND

    monkeypatch.setattr(folder_audit, "audit_images", take)
    monkeypatch.setattr(protecting, "audit_protection", lambda *_: FOUND)
    return handed


def protected(out: Path, source: Path, **changes: Any) -> Path:
    out.mkdir()
    protect_data(request_for(source, **changes), out, command="shadow-defense protect", progress=Progress())
    return out


def test_a_folder_of_ours_knows_which_images_it_holds(
    hospital: Path, tmp_path: Path, site: Path, seen: list[Any]
) -> None:
    """Set aside and limited: what is left is found again, image by image."""
    source = write_npz(tmp_path / "data.npz", 150, 30)
    out = protected(tmp_path / "out", source, aside=80.0, limit=40, settings={"texture": "white", "strength": 0.01})
    record = audit(out, source, None, tmp_path / "audit")
    drawn, written, images, places, _, private, _, _ = seen[0]
    # Noise of a hundredth: each image is next to its own clean one.
    assert np.abs((images - private.unit_images()[places]).numpy()).max() < 0.06
    assert (drawn.deviation == 0.01).all()
    assert written.inner is drawn
    assert record["counts"] == {"protected": 40, "audited": 40, "public": 80, "spent": 80, "passed": 0}
    for given, wanted in (
        ((hospital / "private.npz", None), "of 60 training images|is not what"),
        ((source, hospital / "public.npz"), "leave --public out"),
        ((hospital / "public.npz", None), "is not what .* was made of"),
    ):
        with pytest.raises(ShadowDefenseError, match=wanted):
            audit(out, *given, tmp_path / "again")
    with pytest.raises(ShadowDefenseError, match="leave --texture out"):
        audit(out, source, None, tmp_path / "again", "white")
    (out / "texture.safetensors").unlink()
    with pytest.raises(ShadowDefenseError, match="was not protected to the end"):
        audit(out, source, None, tmp_path / "again")


def test_pictures_are_paired_by_name(hospital: Path, tmp_path: Path, site: Path, seen: list[Any]) -> None:
    for place, image in enumerate(labelled(30, 8)[0]):
        # As PNG the names sort otherwise.
        target = tmp_path / "data" / ("ill" if place % 2 else "well") / f"{place}.{'jpeg' if place % 3 else 'tif'}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)
    public = hospital / "public.npz"
    settings = {"texture": "white", "strength": 0.01}
    out = protected(tmp_path / "out", tmp_path / "data", public=str(public), settings=settings)
    audit(out, tmp_path / "data", public, tmp_path / "audit")
    images, places, private = seen[0][2], seen[0][3], seen[0][5]
    assert np.abs((images - private.unit_images()[places]).numpy()).max() < 0.06
    # Without what it says of itself it is somebody else's, and still paired.
    (out / "protection.json").unlink()
    audit(out, tmp_path / "data", public, tmp_path / "theirs", "white")
    assert (seen[1][2] == images).all()
    (out / "ill" / "1.png").unlink()
    with pytest.raises(ShadowDefenseError, match=r"no protected image 'ill/1\.png'"):
        audit(out, tmp_path / "data", public, tmp_path / "theirs", "white")


def test_a_wrong_pairing_is_refused(hospital: Path, noisy: Path, tmp_path: Path) -> None:
    with np.load(hospital / "private.npz") as arrays:
        given = dict(arrays)
    np.savez(tmp_path / "flipped.npz", **{**given, "train_labels": 1 - given["train_labels"]})
    others, few = write_npz(tmp_path / "others.npz", 60, 77), write_npz(tmp_path / "few.npz", 30, 5)
    for truth, public, wanted in (
        (hospital / "public.npz", others, "60 protected images and 240 clean ones"),
        (tmp_path / "flipped.npz", others, "has another label than its protected image"),
        (hospital / "private.npz", few, "expected at least 50"),
        (hospital / "private.npz", None, "give --public"),
    ):
        with pytest.raises(ShadowDefenseError, match=wanted):
            audit(noisy, truth, public, tmp_path / "out", "white")


def test_two_data_sets_in_a_folder_are_no_one(hospital: Path, noisy: Path, tmp_path: Path) -> None:
    shutil.copy(noisy / "private.npz", noisy / "second.npz")
    with pytest.raises(ShadowDefenseError, match=r"holds private\.npz, second\.npz: expected one data set"):
        audit(noisy, hospital / "private.npz", hospital / "public.npz", tmp_path / "out", "white")
    with pytest.raises(ShadowDefenseError, match="what texture features spares"):
        audit(noisy / "private.npz", hospital / "private.npz", hospital / "public.npz", tmp_path / "out", "recommended")

"""A protected data set: the same layout, nothing overwritten, the same to the bit again, and a certificate."""

from __future__ import annotations

import itertools
import json
import shutil
import stat
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shadow_defense.attacks.removers.lmmse import LinearRemover
from shadow_defense.attacks.removers.planted import drawn
from shadow_defense.attacks.removers.worst_case import scores
from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import ConfigError, DataError, RunError, ShadowDefenseError
from shadow_defense.experiment.protecting import protecting
from shadow_defense.experiment.protecting.material import Request
from shadow_defense.experiment.protecting.protecting import protect_data
from shadow_defense.experiment.protecting.settings import PRESETS, protect_preset
from shadow_defense.experiment.protecting.weakest import parse_target, weakest_strength
from shadow_defense.metrics.limit import Limit
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.settings import ModelSettings
from shadow_defense.progress import Progress
from shadow_defense.protection.directions import train_classifier
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening
from tests.experiment.protecting.conftest import request_for, write_npz


def protect(request: Request, out: Path) -> dict[str, Any]:
    return protect_data(request, out, command="shadow-defense protect", progress=Progress())


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as opened:
        return dict(opened)


@pytest.mark.slow
def test_a_whole_protection(hospital: Path, tmp_path: Path, site: Path, perceived: None) -> None:
    request = request_for(hospital / "private.npz", public=str(hospital / "public.npz"))
    out = tmp_path / "out"
    out.mkdir()
    certificate = protect(request, out)

    before, after = arrays(hospital / "private.npz"), arrays(out / "private.npz")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert before[name].shape == after[name].shape
        if "labels" in name:
            assert np.array_equal(before[name], after[name])
    # The validation and test parts went through the exported map.
    program = torch.export.load(out / "transform.pt2").module()
    test = torch.from_numpy(before["test_images"])[:, None].float() / 255
    mapped = (program(test).clamp(0, 1) * 255).round()[:, 0].numpy()
    assert np.abs(mapped - after["test_images"]).max() <= 1
    assert np.abs(after["train_images"].astype(int) - before["train_images"]).mean() > 2

    written = json.loads((out / "certificate.json").read_text())
    assert written == json.loads(json.dumps(certificate))
    assert written["planted_breaks"] == {"weak noise": True, "draws of a known seed": True, "sparse noise": True}
    assert set(written["removers"]) == {"lmmse", "learned"}
    # Nobody's patient is known here.
    assert written["linkage"].pop("patient_auc") is None
    for table in ("worst", "mean_image", "linkage", "floor"):
        for number in written[table].values():
            assert number.keys() == {"mean", "low", "high", "count"}
    assert written["worst"]["psnr"]["count"] == 40
    assert {"psnr", "ssim", "rdlv"} <= written["worst"].keys()
    assert written["worst"]["lpips"]["mean"] > 0
    # Noise as large as what is spared: half of its variance is told, and a little more than the mean is known.
    assert 0 < written["worst"]["psnr"]["mean"] - written["mean_image"]["psnr"]["mean"] < 4
    page = (out / "certificate.html").read_text()
    assert "What this covers" in page
    assert 'src="http' not in page

    names = {path.name for path in out.iterdir()}
    assert not any(name.endswith(".key") for name in names)
    assert (site / "secrets" / "site.key").exists()
    for path in out.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    # Told again and not done again; what is there stays, whatever else is asked.
    kept = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert protect(request, out) == json.loads(json.dumps(certificate))
    with pytest.raises(RunError, match="holds another protection"):
        protect(request_for(hospital / "private.npz", public=str(hospital / "public.npz"), limit=30), out)
    assert kept == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


@pytest.mark.slow
def test_one_that_was_stopped_goes_on_to_the_bit(
    hospital: Path, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(hospital / "private.npz", public=str(hospital / "public.npz"))
    out, again = tmp_path / "out", tmp_path / "again"
    for folder in (out, again):
        folder.mkdir()
    monkeypatch.setattr(protecting, "audit_protection", _killed)
    with pytest.raises(KeyboardInterrupt):
        protect(request, out)
    first = arrays(out / "private.npz")
    (out / "private.npz").unlink()
    with pytest.raises(KeyboardInterrupt):
        protect(request, out)
    assert np.array_equal(arrays(out / "private.npz")["train_images"], first["train_images"])
    # In another folder of the same site the same; at another site not.
    with pytest.raises(KeyboardInterrupt):
        protect(request, again)
    assert np.array_equal(arrays(again / "private.npz")["train_images"], first["train_images"])
    shutil.rmtree(site)
    (again / "private.npz").unlink()
    with pytest.raises(KeyboardInterrupt):
        protect(request, again)
    assert not np.array_equal(arrays(again / "private.npz")["train_images"], first["train_images"])


def test_a_model_of_an_earlier_protection_is_counted_in(
    hospital: Path, tmp_path: Path, site: Path, quick: None
) -> None:
    """Its images are the attacker's too: the same draws, made again from the site's secret."""
    settings = ModelSettings(name="convnet", width=8, normalisation="group")
    public = arrays(hospital / "public.npz")
    images, labels = torch.from_numpy(public["train_images"])[:, None].float() / 255, public["train_labels"][:, 0]
    as_they_are = Normalisation((0.5,), (0.1,))
    model = train_classifier(images, torch.from_numpy(labels), as_they_are, seed=0, settings=settings)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "model.yaml").write_text(
        f"model: {{name: convnet, width: 8, normalisation: group, start: {tmp_path / 'weights.pt'}}}\n"
        "data: {mean: [0.5], std: [0.1]}\n"
    )
    given = {"public": str(hospital / "public.npz"), "settings": {"strength": 1.0}}
    first, alone, both = (tmp_path / name for name in ("first", "alone", "both"))
    for folder in (first, alone, both):
        folder.mkdir()
    protect(request_for(hospital / "private.npz", public=given["public"], settings={"texture": "covariance"}), first)
    told = {**given, "model": str(tmp_path / "model.yaml")}
    once = protect(request_for(hospital / "private.npz", **told), alone)
    twice = protect(request_for(hospital / "private.npz", **told, trained_on=first), both)
    assert "on top of every number here" in once["notes"][0]
    assert "counted" not in once["notes"][0]
    assert "handed the earlier protected images too" in twice["notes"][0]
    assert once["hashes"] == twice["hashes"]
    assert twice["removers"]["lmmse"] == once["removers"]["lmmse"]
    assert twice["removers"]["lmmse of both looks"]["psnr"]["mean"] > once["removers"]["lmmse"]["psnr"]["mean"] + 1
    assert twice["worst"]["psnr"]["mean"] > once["worst"]["psnr"]["mean"] + 1
    assert twice["linkage"]["rank1"]["mean"] > once["linkage"]["rank1"]["mean"]
    assert twice["floor"]["psnr_of_mean_error"]["mean"] > once["floor"]["psnr_of_mean_error"]["mean"]
    shutil.rmtree(site)
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(DataError, match="at another site"):
        protect(request_for(hospital / "private.npz", **told, trained_on=first), again)
    with pytest.raises(ShadowDefenseError, match="give both"):
        protect(request_for(hospital / "private.npz", **given, trained_on=first), tmp_path / "third")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_images_set_aside_are_spent_and_the_rest_keeps_its_labels(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = np.array([f"patient {index // 2}" for index in range(200)])
    source = write_npz(tmp_path / "data.npz", 200, 30, train_groups=groups)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(protecting, "audit_protection", _killed)
    with pytest.raises(KeyboardInterrupt):
        protect(request_for(source, aside=120.0, settings={"texture": "white"}), out)
    before, after = arrays(source), arrays(out / "data.npz")
    left = after["train_groups"]
    assert 70 <= len(left) <= 90
    assert len(after["train_images"]) == len(after["train_labels"]) == len(left)
    kept = np.isin(before["train_groups"], left)
    # Whole patients stay or go.
    assert kept.sum() == len(left)
    assert np.array_equal(before["train_labels"][kept], after["train_labels"])
    assert np.array_equal(before["test_images"], after["test_images"])


def test_a_folder_of_images_comes_out_as_a_folder(
    hospital: Path, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    images = arrays(hospital / "private.npz")["train_images"]
    for index, image in enumerate(images):
        target = tmp_path / "data" / "train" / ("ill" if index % 2 else "well") / f"{index:02d}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target, quality=95)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(protecting, "audit_protection", _killed)
    with pytest.raises(KeyboardInterrupt):
        protect(request_for(tmp_path / "data", public=str(hospital / "public.npz"), limit=30), out)
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    given = {path.relative_to(tmp_path / "data").with_suffix(".png").as_posix() for path in tmp_path.rglob("*.jpeg")}
    assert len(written) == 30
    assert set(written) <= given
    with Image.open(out / written[0]) as image:
        assert (image.size, image.mode) == ((12, 12), "L")


def test_a_withheld_verdict_gives_no_numbers(
    hospital: Path, tmp_path: Path, site: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: the attacker's copy of the defense draws otherwise than the defense."""
    from shadow_defense.protection.white import White

    drawn = White.added
    calls = itertools.count()
    monkeypatch.setattr(White, "added", lambda self, draws: drawn(self, draws) + 0.2 * (next(calls) % 2))
    out = tmp_path / "out"
    out.mkdir()
    settings = {"texture": "white", "strength": 0.1, "remover_steps": 50}
    certificate = protect(
        request_for(hospital / "private.npz", public=str(hospital / "public.npz"), settings=settings), out
    )
    assert certificate["planted_breaks"]["draws of a known seed"] is False
    assert certificate["worst"] is certificate["linkage"] is None
    assert "withheld" in certificate["verdict"][0]
    assert "withheld" in (out / "certificate.html").read_text()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "give either --public or --set-aside"),
        ({"public": "public.npz", "aside": 100.0}, "give either --public or --set-aside"),
        ({"public": "absent"}, "no images at 'absent'"),
        ({"public": "private.npz"}, r"60 of 60 public images are .* \(public image 'train/0' is 'train/0' of them\)"),
        ({"public": "resaved"}, r"are among those to protect \(public image '0\.png' is 'train/0' of them\)"),
        ({"public": "few.npz"}, "30 public images: expected at least 50"),
        ({"public": "public.npz", "limit": 5}, "5 images to protect: expected at least 20"),
        ({"aside": 60.0}, "--set-aside 60 of 60 training images: expected fewer"),
        ({"public": "public.npz", "targets": (Limit("rdlv", 1e-6),)}, "is not reached: the strongest noise leaves"),
        ({"public": "unlabelled"}, "the public images have no labels"),
        ({"public": "public.npz", "settings": {"directions": 1000}}, "expected 1 to 144"),
    ],
)
def test_bad_input_is_one_line(
    hospital: Path, tmp_path: Path, site: Path, changes: dict[str, Any], wanted: str
) -> None:
    from PIL import Image

    write_npz(tmp_path / "few.npz", 30, 40)
    for name, of in (("resaved", "private.npz"), ("unlabelled", "public.npz")):
        (tmp_path / name).mkdir()
        for index, image in enumerate(arrays(hospital / of)["train_images"][:60]):
            Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC).save(tmp_path / name / f"{index}.png")
    if changes.get("public", "absent") != "absent":
        here = [folder / changes["public"] for folder in (hospital, tmp_path)]
        changes = {**changes, "public": str(next(path for path in here if path.exists()))}
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ShadowDefenseError, match=wanted):
        protect(request_for(hospital / "private.npz", **changes), out)
    assert not (out / "private.npz").exists()


def test_what_else_an_archive_holds_is_not_passed_on(hospital: Path, tmp_path: Path, site: Path) -> None:
    source = write_npz(tmp_path / "data.npz", 60, 10, train_ages=np.arange(60))
    with pytest.raises(DataError, match="holds 'train_ages'"):
        protect(request_for(source, public=str(hospital / "public.npz")), tmp_path / "out")


def test_the_secret_never_lies_in_what_is_protected(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("SHADOW_DEFENSE_STATE", str(out / "site"))
    with pytest.raises(RunError, match="the site's secret would lie in"):
        protect(request_for(hospital / "private.npz", public=str(hospital / "public.npz")), out)


def test_a_folder_with_anything_in_it_is_left_alone(hospital: Path, tmp_path: Path, site: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty, and nothing is overwritten"):
        protect(request_for(hospital / "private.npz", public=str(hospital / "public.npz")), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("measure", ["rdlv", "psnr", "linkage"])
def test_the_weakest_strength_meets_its_target_and_no_less(hospital: Path, measure: str) -> None:
    public = torch.from_numpy(arrays(hospital / "public.npz")["train_images"])[:, None].float() / 255
    whitening = measure_whitening(public)
    mean = whitening.mean.unflatten(0, whitening.shape)

    def leaked(strength: float) -> float:
        texture = White(whitening, strength)
        protected = texture.protect(public, drawn(0, "target", len(public)))
        if measure == "linkage":
            # White noise on whole images: the likeliest image is the nearest one.
            nearest = torch.cdist(protected.flatten(1), public.flatten(1)).argmin(dim=1)
            return float((nearest == torch.arange(len(public))).float().mean())
        estimates = LinearRemover(whitening, texture.view()).removal.images([protected])
        if measure == "psnr":
            return float((psnr(estimates, public) - psnr(mean.expand_as(public), public)).mean())
        return float(scores(estimates, public, mean)["rdlv"].mean())

    target = Limit(measure, 0.3 * leaked(0.05))
    strength = weakest_strength(lambda strength: White(whitening, strength), public, target)
    assert leaked(strength) <= target.value < leaked(0.9 * strength)


def test_an_earlier_look_counts_where_a_strength_is_chosen(hospital: Path) -> None:
    """White noise of deviation s, seen twice, tells as much as once of ``s / sqrt(2)``: the mean of both has that."""
    public = torch.from_numpy(arrays(hospital / "public.npz")["train_images"])[:, None].float() / 255
    whitening, target = measure_whitening(public), Limit("psnr", 3.0)
    make = partial(White, whitening)
    alone = weakest_strength(make, public, target)
    weaker = weakest_strength(make, public, target, earlier=[make(2 * alone)])
    # 1 / s^2 + 1 / (2 s0)^2 = 1 / s0^2
    assert weaker == pytest.approx(alone * (4 / 3) ** 0.5, rel=0.05)
    with pytest.raises(ConfigError, match="of which the attacker has seen"):
        weakest_strength(make, public, target, earlier=[make(0.5 * alone)])


@pytest.mark.parametrize("text", ["rdlv", "rdlv=-1", "ssim=0.4", "rdlv=nan", "rdlv=many", "linkage=1", "psnr=inf"])
def test_a_target_is_a_measure_and_a_number_that_it_can_have(text: str) -> None:
    with pytest.raises(ShadowDefenseError, match=r"such as rdlv=0\.25"):
        parse_target(text)
    assert [str(parse_target(each)) for each in ("psnr=+2", "linkage=0.05")] == ["psnr=2", "linkage=0.05"]


def test_presets() -> None:
    assert {name: protect_preset(name).texture for name in PRESETS} == {
        "recommended": "features",
        "directions": "task",
        "white": "white",
        "covariance": "covariance",
        "decoy": "decoy",
    }
    with pytest.raises(ShadowDefenseError, match="did you mean 'recommended'"):
        protect_preset("recomended")

"""A small hospital: images of two classes in an .npz, others like them that are public, and a folder for its secret."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.experiment.protecting import auditing
from shadow_defense.experiment.protecting.material import Request
from shadow_defense.experiment.protecting.settings import ProtectSettings
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.protection import directions
from shadow_defense.protection.constants import hash_of
from shadow_defense.report.records.certificate import Audited
from tests.protection.gaussian_images import gaussian_images

NUMBERS = {name: Estimate(0.5, (0.4, 0.6), 20) for name in ("psnr", "ssim", "rdlv", "rank1", "auc")}
FOUND = Audited({"weak noise": True}, {"lmmse": NUMBERS}, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
"""What an audit might find, in place of its minute."""

QUICK = {"audited": 40, "remover_steps": 50}


def labelled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 12, 12) bytes and (count, 1) labels; a bright square marks class 1."""
    labels = torch.arange(count) % 2
    images = gaussian_images(count, seed)
    images[labels == 1, :, 2:6, 2:6] += 0.15
    return (images[:, 0].clamp(0, 1) * 255).round().byte().numpy(), labels[:, None].numpy()


def write_npz(path: Path, train: int, seed: int, **more: np.ndarray) -> Path:
    images, labels = labelled(train, seed)
    test_images, test_labels = labelled(10, seed + 1)
    np.savez(path, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels, **more)
    return path


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    write_npz(folder / "private.npz", 60, 10)
    write_npz(folder / "public.npz", 240, 20)
    return folder


@pytest.fixture(scope="session")
def classifiers() -> dict[str, nn.Module]:
    """By all that decides it."""
    return {}


@pytest.fixture(autouse=True)
def _trained_once(classifiers: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same classifier of the same public images is trained for one test, and taken by the others."""
    train = directions.train_classifier

    def trained(images: Tensor, labels: Tensor, normalisation: Normalisation, **given: Any) -> nn.Module:
        told = {name: str(value) for name, value in given.items() if name != "progress"}
        name = f"{hash_of((images * 255).round().byte(), labels)} {normalisation} {told}"
        if name not in classifiers:
            classifiers[name] = train(images, labels, normalisation, **given)
        return copy.deepcopy(classifiers[name])

    monkeypatch.setattr(directions, "train_classifier", trained)


@pytest.fixture
def perceived() -> None:
    """LPIPS is measured, which takes longer than all the rest of an audit."""


@pytest.fixture(autouse=True)
def _unperceived(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "perceived" not in request.fixturenames:
        monkeypatch.setattr(auditing, "load_lpips", lambda name: None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the secret lies."""
    monkeypatch.setenv("SHADOW_DEFENSE_STATE", str(tmp_path / "site"))
    return tmp_path / "site"


def request_for(images: Path, **changes: object) -> Request:
    """A request with settings that take seconds."""
    settings = ProtectSettings(**{**QUICK, **changes.pop("settings", {})})  # type: ignore[dict-item]
    return Request(images=str(images), settings=settings, **changes)  # type: ignore[arg-type]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the networks, which take nearly all of the time."""
    from shadow_defense.experiment.protecting import auditing

    for name in ("removers_for", "planted_breaks"):
        real = getattr(auditing, name)
        monkeypatch.setattr(auditing, name, lambda *given, real=real, **more: real(*given, **{**more, "steps": 0}))
    monkeypatch.setattr(auditing, "load_lpips", lambda name: None)

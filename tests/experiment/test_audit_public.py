"""Audits by attackers that hold public images: from any form of them, never from the client's own, nor unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from shadow_defense.attacks.build import AttackSettings, reconstruct
from shadow_defense.data.dataset import ImageSet
from shadow_defense.errors import DataError
from shadow_defense.experiment.audit.images import ModelInput
from shadow_defense.progress import Task
from shadow_defense.seeds import seed_for
from tests.attacks.clients import SHORT, lenet, observation, private
from tests.experiment.audit_command import DIFFERENCE, LABELLED, LOCAL, QUICK, Audit, write_classes

LEARNING: dict[str, Any] = {"attack": "learning-to-invert", "options": SHORT["learning-to-invert"]}


@pytest.fixture
def learning(files: Path, tmp_path: Path) -> tuple[str, ...]:
    """The arguments of an audit by an attack that learns from public images for a moment."""
    values = {**yaml.safe_load((files / "model.yaml").read_text()), "attacks": {"learning": LEARNING}}
    (tmp_path / "learning.yaml").write_text(yaml.safe_dump(values))
    model = ("--model", str(tmp_path / "learning.yaml"), *DIFFERENCE[2:])
    return (*model, *LOCAL, "--labels", "1", "--attack", "learning")


def write_npz(path: Path) -> Path:
    pixels = {name: (images * 255).round().byte().numpy()[:, 0] for name, images in LABELLED.items()}
    labels = np.repeat([0, 1], [len(each) for each in pixels.values()])
    np.savez(path, train_images=np.concatenate(list(pixels.values())), train_labels=labels)
    return path


def write_manifest(path: Path, images: Path) -> Path:
    lines = [f"{file},{file.parent.name}" for file in sorted(images.rglob("*.png"))]
    path.write_text("\n".join(["path,label", *lines]))
    return path


def test_a_source_whose_classes_come_in_another_order_is_refused() -> None:
    names = ModelInput(1, 16, 2).labelled_images("faces").labels.unique().tolist()
    assert names == [0, 1]
    with pytest.raises(DataError, match="in label order and the model's face, other"):
        ModelInput(1, 16, 2, ("face", "other")).labelled_images("faces")


@pytest.mark.parametrize("form", ["folder", "npz", "manifest"])
def test_an_attack_learns_from_the_public_images(
    audit: Audit, learning: tuple[str, ...], files: Path, tmp_path: Path, form: str
) -> None:
    given = {
        "folder": lambda: files / "labelled",
        "npz": lambda: write_npz(tmp_path / "public.npz"),
        "manifest": lambda: write_manifest(tmp_path / "public.csv", files / "labelled"),
    }[form]()
    audit(*learning, "--public", str(given))
    images = (torch.cat(list(LABELLED.values())) * 255).round().byte()
    auxiliary = ImageSet(images, torch.tensor([0] * 4 + [1] * 6), tuple(map(str, range(10))))
    seen = replace(observation(lenet())[0], _auxiliary=auxiliary)
    wanted = reconstruct(AttackSettings(**LEARNING), seen, seed_for(0, "audit", "learning"), Task())
    torch.testing.assert_close(audit.images("learning"), wanted.images)


def test_the_clients_own_images_are_not_learned_from(
    audit: Audit, learning: tuple[str, ...], files: Path, tmp_path: Path
) -> None:
    audit(*learning, "--public", "@labelled")
    without = audit.images("learning")
    mixed = write_classes(tmp_path / "mixed", {**LABELLED, "b": torch.cat([LABELLED["b"], private()])})
    audit(*learning, "--public", str(mixed), "--truth", "@truth")
    assert torch.equal(audit.images("learning"), without)
    audit(*learning, "--public", str(mixed))
    assert not torch.equal(audit.images("learning"), without)


def test_public_images_stand_in_for_the_template_and_are_kept_from_whom_they_are_not_granted(audit: Audit) -> None:
    arguments = (*DIFFERENCE, *QUICK, "--truth", "@truth", "--set", "data.mean=null", "--threat-model", "eavesdropper")
    by_public = audit(*arguments, "--public", "@labelled")
    assert (
        "Given and not used, since the eavesdropper is not granted it: public images, template." in by_public["notes"]
    )
    assert any("measured on --public: mean 0." in note for note in by_public["notes"])
    by_template = audit(*arguments, "--template", "@labelled")
    for key in ("mean_image_ssim", "rdlv"):
        (first,), (second,) = (each["attacks"]["inverting-gradients"]["rows"] for each in (by_public, by_template))
        assert first[key] is not None and first[key] == second[key]

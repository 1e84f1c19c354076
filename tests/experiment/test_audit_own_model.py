"""An audit of a model of one's own gives what the audit of the same model by its name gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shadow_defense.errors import ModelError
from shadow_defense.models.naming import NAMED
from shadow_defense.plain_yaml import read_yaml
from tests.attacks.clients import lenet
from tests.experiment.audit_command import LOCAL, QUICK, Audit

PLACE = "tests.attacks.clients:lenet"


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED, "")


def _arguments(files: Path, model: str) -> tuple[str, ...]:
    data = read_yaml(files / "model.yaml")["data"]
    settings = (f"data.image_size={data['image_size']}", f"data.mean={data['mean']}", f"data.std={data['std']}")
    chosen = [part for setting in (*settings, "metrics.lpips=null") for part in ("--set", setting)]
    known = (
        "--global",
        "@global.safetensors",
        "--update",
        "@difference.safetensors",
        "--samples",
        "1",
        "--labels",
        "1",
    )
    return ("--model", model, *known, *LOCAL, *QUICK, *chosen)


@pytest.fixture(scope="module")
def expected(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    audit = Audit(files, tmp_path_factory.mktemp("by-name"))
    audit(*_arguments(files, "@model.yaml"))
    return audit.images("inverting-gradients")


def _scripted(folder: Path) -> str:
    torch.jit.save(torch.jit.trace(lenet(), torch.zeros(2, 1, 16, 16)), folder / "net.ts")
    return str(folder / "net.ts")


def _exported(folder: Path) -> str:
    many = torch.export.Dim("many", min=1, max=64)
    program = torch.export.export(lenet(), (torch.zeros(2, 1, 16, 16),), dynamic_shapes=({0: many},))
    torch.export.save(program, folder / "net.pt2")
    return str(folder / "net.pt2")


@pytest.mark.parametrize("model", [lambda folder: PLACE, _scripted, _exported], ids=["factory", "script", "export"])
def test_any_form_of_a_model_is_audited_alike(audit: Audit, expected: Tensor, tmp_path: Path, model: object) -> None:
    assert callable(model)
    audit(*_arguments(audit.files, model(tmp_path)))
    torch.testing.assert_close(audit.images("inverting-gradients"), expected, rtol=0, atol=1e-4)


def test_a_yaml_file_does_not_start_a_factory(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text(f"model: {{name: '{PLACE}'}}\ndata: {{image_size: 16}}\n")
    given = ("--global", "@global.safetensors", "--update", "@difference.safetensors", "--samples", "1")
    error = audit.refused("--model", str(tmp_path / "given.yaml"), *given)
    assert isinstance(error, ModelError) and f"--model {PLACE}" in str(error)
    # Its words are a remedy.
    audit(
        "--model",
        str(tmp_path / "given.yaml"),
        *given,
        "--set",
        f"model.name={PLACE}",
        *QUICK,
        "--set",
        "data.mean=[0.5]",
        "--set",
        "data.std=[0.25]",
        "--set",
        "metrics.lpips=null",
    )

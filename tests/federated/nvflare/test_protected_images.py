"""The example's site trains on protected images without a changed line, and sends nothing of the clean ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experiment.protecting.conftest import FOUND
from torch import Tensor

import shadow_defense
from shadow_defense.data.images import as_bytes
from shadow_defense.experiment.protecting import in_memory
from shadow_defense.protection.frozen import FrozenProtection

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "nvflare"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The example's training script as a module, at a site whose data is protected first."""
    pytest.importorskip("nvflare")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("SHADOW_DEFENSE_STATE", str(tmp_path / "site"))
    monkeypatch.setattr(in_memory, "audit_protection", lambda *_: FOUND)
    described = importlib.util.spec_from_file_location("example_client", EXAMPLE / "client.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def update(client: Any, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Of a first round on 24 protected images whose clean ones are of that seed."""
    draws = torch.Generator().manual_seed(seed)
    clean, public = torch.rand(24, 1, 16, 16, generator=draws), torch.rand(60, 1, 16, 16)
    labels = torch.arange(24) % 2
    protected, _ = shadow_defense.protect(clean, labels, public=public, preset="white")
    tmp_path.mkdir(exist_ok=True)
    np.savez(tmp_path / f"{seed}.npz", train_images=as_bytes(protected)[:, 0].numpy(), train_labels=labels.numpy())
    before, sent = client.FacesModel().state_dict(), []
    asked = [client.flare.FLModel(params=dict(before), current_round=0, total_rounds=2), None]
    for name, does in {"get_site_name": lambda: "site-3", "receive": lambda: asked.pop(0), "send": sent.append}.items():
        monkeypatch.setattr(client.flare, name, does)
    client.undefended(tmp_path / f"{seed}.npz")
    [update] = sent
    return dict(update.params)


def test_it_sends_the_same_for_other_images_with_the_same_protected_ones(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (update(client, tmp_path, seed, monkeypatch) for seed in (1, 2))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all(tensor.any() for tensor in one.values())

    def drawn(self: FrozenProtection, clean: Tensor) -> Tensor:
        return torch.rand(clean.shape, generator=torch.Generator().manual_seed(5))

    monkeypatch.setattr(FrozenProtection, "trained_on", drawn)
    one, other = (update(client, tmp_path / "same", seed, monkeypatch) for seed in (1, 2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

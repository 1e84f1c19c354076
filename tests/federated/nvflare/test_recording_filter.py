"""The auditor: what it writes is what passed, and what passed is untouched."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from tests.federated.nvflare.results import Model, as_numpy, context, result

from shadow_defense.federated.nvflare.recording_filter import RecordingFilter
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors

GLOBAL = Model().state_dict()
DIFFERENCE = {name: torch.full_like(tensor, 2) for name, tensor in GLOBAL.items()}


def passed(folder: Path, given: Shareable, client: str | None = None) -> None:
    """A message through a server's filter: out to everybody, or in from a client."""
    asked = context("server", **{FLContextKey.FILTER_DIRECTION: FilterKey.OUT if client is None else FilterKey.IN})
    if client is not None:
        asked.set_peer_context(context(client))
    before = dict(from_shareable(copy.deepcopy(given)).data)
    found = RecordingFilter(str(folder)).process(given, asked)
    torch.testing.assert_close(dict(from_shareable(found).data), before, rtol=0, atol=0)


def test_what_the_server_sees_as_files_of_an_audit(tmp_path: Path) -> None:
    passed(tmp_path, result(as_numpy(GLOBAL), round=1, kind=DataKind.WEIGHTS))
    said = result(as_numpy(DIFFERENCE), round=1, num_samples=4, NUM_STEPS_CURRENT_ROUND=2)
    passed(tmp_path, said, client="site-1")
    passed(tmp_path, result(DIFFERENCE, round=1), client="site-2")
    place = tmp_path / "round-0001"
    recorded, _ = read_tensors(place / "global.safetensors")
    assert recorded.keys() == GLOBAL.keys() and all(torch.equal(recorded[name], GLOBAL[name]) for name in GLOBAL)
    update = ModelUpdate.load(place / "update-site-1.safetensors")
    assert (update.samples, update.steps, update.round, update.client) == (4, 2, 1, "site-1")
    update.check_against(GLOBAL)
    tensors, metadata = read_tensors(place / "update-site-2.safetensors")
    assert metadata == {}, "who does not say how many images is not said to have any number of them"
    for name, tensor in DIFFERENCE.items():
        assert torch.equal(update.tensors[name], tensor) and torch.equal(tensors[name], tensor)


def test_another_job_is_not_recorded_beside_the_model_of_an_earlier_one(tmp_path: Path) -> None:
    passed(tmp_path, result(as_numpy(GLOBAL), kind=DataKind.WEIGHTS))
    passed(tmp_path, result(as_numpy(DIFFERENCE), kind=DataKind.WEIGHTS))
    recorded, _ = read_tensors(tmp_path / "round-0000" / "global.safetensors")
    assert all(torch.equal(recorded[name], tensor) for name, tensor in DIFFERENCE.items())


def test_of_whole_weights_the_difference(tmp_path: Path) -> None:
    passed(tmp_path, result(as_numpy(GLOBAL), kind=DataKind.WEIGHTS))
    after = {name: GLOBAL[name] + each for name, each in DIFFERENCE.items()}
    passed(tmp_path, result(as_numpy(after), kind=DataKind.WEIGHTS), client="site-1")
    tensors, _ = read_tensors(tmp_path / "round-0000" / "update-site-1.safetensors")
    for name, each in DIFFERENCE.items():
        torch.testing.assert_close(tensors[name], each)


@pytest.mark.parametrize(
    ("answer", "client", "why"),
    [
        (make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR), "site-1", "site-1 answered TASK_RESULT_FILTER_ERROR"),
        (result({"accuracy": np.float64(0.5)}, kind=DataKind.METRICS), "site-1", "METRICS, which is no update"),
        (result(as_numpy(DIFFERENCE)), "../site-1", "cannot be a file"),
        (result(as_numpy(DIFFERENCE), round=None), "site-1", "does not say its round"),
        (result({"a": np.full(2, np.nan)}, num_samples=1), "site-1", "NaN or infinity"),
        (Shareable(), "site-1", "not a valid DXO"),
        (result({"a": np.zeros(3)}, kind=DataKind.WEIGHTS), "site-1", "not recorded"),
    ],
)
def test_what_is_no_update_is_named_and_passes(
    answer: Shareable, client: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RecordingFilter(str(tmp_path / "seen")).process(answer, _asked_by(client))
    assert why in caplog.text and not list(tmp_path.rglob("*.safetensors"))


def _asked_by(client: str) -> Any:
    asked = context("server", **{FLContextKey.FILTER_DIRECTION: FilterKey.IN})
    asked.set_peer_context(context(client))
    return asked

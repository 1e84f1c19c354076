"""What leaves a client, and how the server averages it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shadow_defense.errors import UpdateError
from shadow_defense.federated.server import apply_update, average_updates
from shadow_defense.federated.update import ModelUpdate, state_difference
from shadow_defense.files import write_tensors


def update(tensors: dict[str, Tensor], samples: int = 1, client: str = "site-1") -> ModelUpdate:
    return ModelUpdate(tensors, samples, steps=1, round=0, client=client)


def test_average_by_hand() -> None:
    """The paper's smallest and largest client, 1 and 512 images: (1 * 513 + 512 * 0) / 513 = 1."""
    small = update({"w": torch.tensor([513.0, 0.0]), "b": torch.tensor([[4.0]])}, samples=1)
    large = update({"w": torch.tensor([0.0, 513.0]), "b": torch.tensor([[4.0]])}, samples=512)
    averaged = average_updates([small, large])
    assert averaged["w"].tolist() == [1.0, 512.0]
    assert averaged["b"].tolist() == [[4.0]]
    three = [update({"w": torch.tensor([value])}, samples) for value, samples in ((1.0, 8), (-2.0, 32), (0.5, 128))]
    # (8 - 64 + 64) / 168
    assert average_updates(three)["w"].item() == pytest.approx(8 / 168)


def test_counters_stay_integers() -> None:
    """(1 * 2 + 3 * 8) / 4 = 6.5, to the nearest even; 2 and 9 steps of 1 and 2 samples: 20 / 3."""
    pairs = (((2, 1), (8, 3), 6), ((2, 1), (9, 2), 7))
    for (first, n), (second, m), expected in pairs:
        given = [update({"bn.num_batches_tracked": torch.tensor(v)}, s) for v, s in ((first, n), (second, m))]
        averaged = average_updates(given)["bn.num_batches_tracked"]
        assert averaged.dtype == torch.int64 and averaged.item() == expected


def test_buffers_are_averaged_and_applied() -> None:
    layer = nn.BatchNorm2d(2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    updates = []
    for seed, samples in ((0, 1), (1, 3)):
        layer.load_state_dict(before)
        layer(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) + seed)
        updates.append(update(state_difference(before, layer.state_dict()), samples))
    after = apply_update(before, average_updates(updates))
    assert after.keys() == before.keys()
    for name in ("running_mean", "running_var"):
        expected = before[name] + 0.25 * updates[0].tensors[name] + 0.75 * updates[1].tensors[name]
        torch.testing.assert_close(after[name], expected)
        assert not torch.equal(after[name], before[name])
    assert after["num_batches_tracked"].item() == 1
    nn.BatchNorm2d(2).load_state_dict(after)


@settings(max_examples=30)
@given(samples=st.lists(st.integers(1, 600), min_size=1, max_size=9), seed=st.integers(0, 1000))
def test_average_is_between_the_updates_and_of_no_order(samples: list[int], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    given_updates = [update({"w": torch.randn(3, generator=draws)}, count) for count in samples]
    stacked = torch.stack([each.tensors["w"] for each in given_updates])
    averaged = average_updates(given_updates)["w"]
    assert (averaged >= stacked.amin(0) - 1e-6).all() and (averaged <= stacked.amax(0) + 1e-6).all()
    torch.testing.assert_close(average_updates(given_updates[::-1])["w"], averaged)


def test_equal_updates_average_to_themselves() -> None:
    tensors = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    averaged = average_updates([update(tensors, samples) for samples in (8, 32, 128, 512, 1)])
    assert torch.equal(averaged["w"], tensors["w"])


def test_difference_and_application_are_inverse() -> None:
    before = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    after = {"w": torch.tensor([1.5, 0.0]), "n": torch.tensor(5)}
    difference = state_difference(before, after)
    assert difference["w"].tolist() == [0.5, -2.0] and difference["n"].item() == 2
    applied = apply_update(before, difference)
    assert all(torch.equal(applied[name], after[name]) for name in after)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_never_leaves(value: float) -> None:
    tensors = {"a": torch.zeros(2), "b.weight": torch.tensor([0.0, value])}
    with pytest.raises(UpdateError, match=r"'b\.weight' in the update of site-1 holds NaN or infinity") as raised:
        update(tensors)
    assert "\n" not in str(raised.value)


def test_no_samples_and_no_updates() -> None:
    with pytest.raises(UpdateError, match="claims 0 samples"):
        update({"a": torch.zeros(1)}, samples=0)
    with pytest.raises(UpdateError, match="no client sent an update"):
        average_updates([])


def test_updates_that_do_not_fit_are_named() -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(3)}
    update(dict(state)).check_against(state)
    wrong = (
        ({"a": torch.zeros(2)}, "lacks tensor 'b'"),
        ({**state, "c": torch.zeros(1)}, "unexpected tensor 'c'"),
        ({**state, "b": torch.zeros(4)}, r"'b' .* shape \(4,\): expected \(3,\)"),
    )
    for tensors, message in wrong:
        with pytest.raises(UpdateError, match=message):
            update(tensors).check_against(state)
        with pytest.raises(UpdateError, match=message.replace("'b' .*", "'b' in the update of site-2 has")):
            average_updates([update(dict(state)), update(tensors, client="site-2")])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "update.safetensors"
    given_update = ModelUpdate({"w": torch.randn(3), "n": torch.tensor(4)}, samples=5, steps=2, round=7, client="é 1")
    given_update.save(path)
    loaded = ModelUpdate.load(path)
    assert (loaded.samples, loaded.steps, loaded.round, loaded.client) == (5, 2, 7, "é 1")
    assert loaded.tensors.keys() == given_update.tensors.keys()
    for name, tensor in given_update.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].dtype == tensor.dtype


def test_files_that_are_no_updates(tmp_path: Path) -> None:
    path = tmp_path / "update.safetensors"

    def refused(message: str) -> None:
        with pytest.raises(UpdateError, match=message) as raised:
            ModelUpdate.load(path)
        assert "\n" not in str(raised.value)

    refused("cannot read .*update.safetensors")
    update({"w": torch.zeros(9)}).save(path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("cannot read .*update.safetensors")
    write_tensors(path, {"w": torch.zeros(1)}, {"kind": "generator"})
    refused("holds no model update")
    write_tensors(path, {"w": torch.zeros(1)}, {"kind": "update", "samples": 1})
    refused("metadata.steps is missing")
    metadata = {"kind": "update", "samples": 1, "steps": 1, "round": 0, "client": "c"}
    write_tensors(path, {"w": torch.tensor([float("nan")])}, metadata)
    refused("NaN")

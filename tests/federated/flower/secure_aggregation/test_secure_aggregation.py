"""SecAgg+ with our clients: the same average, nothing readable in any message, and nothing when anything goes wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from tests.federated.flower import sites
from tests.federated.flower.secure_aggregation.secure_sites import (
    FIXED_POINT,
    ONE_ROUND,
    STAGES,
    by_secure_aggregation,
)
from tests.federated.three_sites import SIZES, build
from torch import Tensor

from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.flower.secure_aggregation.masks import MODULUS
from shadow_defense.federated.server import average_updates
from shadow_defense.federated.training_folder import state_folder
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors

IMAGES = sum(SIZES.values())


def final(folder: Path, rounds: int = sites.SETTINGS.rounds) -> dict[str, Tensor]:
    return read_tensors(state_folder(folder, rounds) / "global.safetensors")[0]


def updates_of(folder: Path) -> dict[str, ModelUpdate]:
    return {name: ModelUpdate.load(folder / "round-0000" / f"update-{name}.safetensors") for name in SIZES}


def assert_within_the_fixed_point(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Half a step from every client, and single precision's rounding of the average and of the sum."""
    assert found.keys() == expected.keys()
    error = FIXED_POINT.largest_error(IMAGES, len(SIZES))
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            difference = (found[name].double() - tensor.double()).abs()
            assert bool((difference <= error + 2**-23 * (1 + tensor.abs())).all()), (name, float(difference.max()))
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("name", sites.DEFENSES)
def test_a_rounds_global_model_is_that_of_one_process_up_to_the_fixed_point(name: str, tmp_path: Path) -> None:
    expected = sites.in_one_process(tmp_path / "one", sites.DEFENSES[name], settings=ONE_ROUND)
    by_secure_aggregation(tmp_path / "secure", sites.DEFENSES[name], settings=ONE_ROUND, client={"settings": ONE_ROUND})
    assert_within_the_fixed_point(final(tmp_path / "secure", 1), expected)
    # All that the server records, and can be attacked.
    assert sorted(file.name for file in (tmp_path / "secure" / "round-0000").iterdir()) == [
        "global.safetensors",
        "update-all-clients.safetensors",
    ]
    recorded = ModelUpdate.load(tmp_path / "secure" / "round-0000" / "update-all-clients.safetensors")
    updates = updates_of(tmp_path / "one")
    assert_within_the_fixed_point(recorded.tensors, average_updates(list(updates.values())))
    # Steps are the images' mean: batches of 4, 3 and 1 images.
    assert (recorded.samples, recorded.steps, recorded.client) == (IMAGES, updates["site-1"].steps, "all-clients")


@pytest.mark.parametrize("policy", ["parameters", "stats", "none"])
def test_what_of_batch_norm_stays_is_in_no_sum(policy: SharedBatchNorm, tmp_path: Path) -> None:
    expected = sites.in_one_process(tmp_path / "one", sites.PLAIN, policy, ONE_ROUND)
    settings: dict[str, Any] = {"settings": ONE_ROUND}
    grid = by_secure_aggregation(tmp_path / "secure", sites.PLAIN, policy, client=settings, **settings)
    assert_within_the_fixed_point(final(tmp_path / "secure", 1), expected)
    withheld = withheld_names(build(), policy)
    shared = sum(tensor.numel() for name, tensor in build().state_dict().items() if name not in withheld)
    assert {len(masked_row(reply)) for _, reply in grid.of_stage("collect_masked_vectors")} == {2 + shared}
    recorded = ModelUpdate.load(tmp_path / "secure" / "round-0000" / "update-all-clients.safetensors")
    assert recorded.withheld == tuple(sorted(withheld))


def masked_row(reply: Message) -> np.ndarray:
    weight, row = reply.content[RECORD_KEY_CONFIGS]["masked_params"]
    assert bytes_to_ndarray(weight).shape == (1,)
    return bytes_to_ndarray(row)


def test_no_message_says_anything_but_masked_words_and_keys(tmp_path: Path) -> None:
    """Not the number of images either, which Flower's own form sends in the clear."""
    grid = by_secure_aggregation(tmp_path, sites.DEFENSES["clip+noise"])
    said = {
        "setup": {"pk1", "pk2"},
        "share_keys": {"dsts", "ctxts"},
        "collect_masked_vectors": {"masked_params"},
        "unmask": {"nids", "shares"},
    }
    assert len(grid.replies) == 3 * len(STAGES) * len(SIZES)
    for stage in STAGES:
        for _, reply in grid.of_stage(stage):
            assert set(reply.content[RECORD_KEY_CONFIGS]) == said[stage]
            if stage != "collect_masked_vectors":
                assert set(reply.content) == {RECORD_KEY_CONFIGS}
                continue
            assert set(reply.content) == {
                RECORD_KEY_CONFIGS,
                *(f"fitres.{name}" for name in ("parameters", "num_examples", "metrics", "status")),
            }
            assert len(reply.content["fitres.parameters"]) == len(reply.content["fitres.metrics"]) == 0
            assert dict(reply.content["fitres.num_examples"]) == {"num_examples": 1}
            assert dict(reply.content["fitres.status"]) == {"code": 0, "message": ""}
    # The same round's row is masked anew every time, and no mask comes from Flower's weak generator.
    rows = [masked_row(reply) for _, reply in grid.of_stage("collect_masked_vectors")]
    assert len({row.tobytes() for row in rows}) == len(rows)


def as_update(words: np.ndarray, like: ModelUpdate) -> dict[str, Tensor]:
    """Words as if nothing masked them."""
    row = torch.from_numpy(words.astype(np.float64) * FIXED_POINT.step - FIXED_POINT.limit)[2:]
    names = sorted(like.tensors)
    parts = row.split([like.tensors[name].numel() for name in names])
    return {name: part.view(like.tensors[name].shape) for name, part in zip(names, parts, strict=True)}


def input_of_last_layer(tensors: Mapping[str, Tensor]) -> Tensor:
    """Of one image in one step dW / db is the input of a linear layer with bias (Phong et al. 2018)."""
    return (tensors["classifier.weight"] / tensors["classifier.bias"].unsqueeze(1)).double()


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten().double(), other.flatten().double()]))[0, 1])


def test_the_server_reads_no_single_update(tmp_path: Path) -> None:
    sites.in_one_process(tmp_path / "one", sites.PLAIN, settings=ONE_ROUND)
    settings: dict[str, Any] = {"settings": ONE_ROUND}
    grid = by_secure_aggregation(tmp_path / "secure", sites.PLAIN, client=settings, **settings)
    updates = updates_of(tmp_path / "one")
    rows = {
        list(SIZES)[reply.metadata.src_node_id - 100]: masked_row(reply)
        for _, reply in grid.of_stage("collect_masked_vectors")
    }
    flat = {
        name: torch.cat([each.tensors[tensor].flatten().double() for tensor in sorted(each.tensors)])
        for name, each in updates.items()
    }
    # Alone, and with any other client's: only in the sum of all do the masks cancel.
    seen = {**{(name,): row for name, row in rows.items()}}
    seen |= {(a, b): (rows[a] + rows[b]) % MODULUS for a in rows for b in rows if a < b}
    for names, words in seen.items():
        for name in names:
            assert abs(correlation(torch.from_numpy(words[2:].astype(np.float64)), flat[name])) < 4 / math.sqrt(
                len(words)
            )
    # The attack that needs the update alone: exact on what site-3 (one image, one step) would send in the clear.
    plain = input_of_last_layer(updates["site-3"].tensors)
    torch.testing.assert_close(plain[0], plain[1], rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    attacked = input_of_last_layer(as_update(rows["site-3"], updates["site-3"]))
    assert abs(correlation(attacked[0], plain[0])) < 4 / math.sqrt(plain.shape[1])


def test_clients_that_put_their_heads_together_find_the_last_ones_update(tmp_path: Path) -> None:
    """What no secure aggregation hides: n U = sum of all - sum of theirs."""
    sites.in_one_process(tmp_path / "one", sites.PLAIN, settings=ONE_ROUND)
    settings: dict[str, Any] = {"settings": ONE_ROUND}
    by_secure_aggregation(tmp_path / "secure", sites.PLAIN, client=settings, **settings)
    average = ModelUpdate.load(tmp_path / "secure" / "round-0000" / "update-all-clients.safetensors")
    updates = updates_of(tmp_path / "one")
    last = updates.pop("site-3")
    for name, tensor in last.tensors.items():
        known = sum(each.samples * each.tensors[name].double() for each in updates.values())
        found = (IMAGES * average.tensors[name].double() - known) / last.samples
        if tensor.is_floating_point():
            error = FIXED_POINT.largest_error(IMAGES, 3) + 2**-23 * float(average.tensors[name].abs().max())
            assert float((found - tensor).abs().max()) <= IMAGES / last.samples * error, name


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Nothing in an average is drawn but the masks, which cancel."""
    by_secure_aggregation(tmp_path / "straight", sites.DEFENSES["clip+noise"])

    def killed(round: int) -> dict[str, Any]:
        if round == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        by_secure_aggregation(tmp_path / "stopped", sites.DEFENSES["clip+noise"], measured=killed)
    by_secure_aggregation(tmp_path / "stopped", sites.DEFENSES["clip+noise"])
    expected = final(tmp_path / "straight")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final(tmp_path / "stopped").items())

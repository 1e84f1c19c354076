"""Properties of every kind of split: disjoint, in range, exact sizes, whole patients, balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shadow_defense.data.set_aside import set_aside
from shadow_defense.data.settings import SplitSettings
from shadow_defense.data.splits import (
    PAPER_SIZES,
    balanced_counts,
    balanced_sample,
    batch_sizes,
    paper_sizes,
    split_clients,
)
from shadow_defense.errors import DataError

quick = settings(max_examples=60)
label_arrays = st.lists(st.integers(0, 3), min_size=1, max_size=120).map(lambda values: np.array(values, np.int64))
seeds = st.integers(0, 2**32)


def deal(labels: Any, kind: str, seed: int = 0, groups: Any = None, **options: Any) -> list[np.ndarray]:
    split = SplitSettings(kind=kind, **options)
    return list(split_clients(np.asarray(labels), groups, None, split, np.random.default_rng(seed)).values())


def all_once(shares: list[np.ndarray], count: int) -> bool:
    return sorted(np.concatenate(shares).tolist()) == list(range(count))


def test_paper_clients_are_those_of_the_paper() -> None:
    labels = np.repeat([0, 1], [1500, 900])
    shares = deal(labels, "paper")
    assert [len(share) for share in shares] == [8, 32, 128, 512, 8, 32, 128, 512, 1]
    assert [int(labels[share].sum()) for share in shares] == [4, 16, 64, 256, 4, 16, 64, 256, 1]
    assert len(np.unique(np.concatenate(shares))) == 1361
    assert batch_sizes(SplitSettings(), PAPER_SIZES) == (4, 4, 4, 4, 8, 8, 8, 8, 1)


@quick
@given(st.integers(9, 1400))
def test_paper_sizes_use_what_is_there_in_proportion(available: int) -> None:
    sizes = paper_sizes(available)
    assert sum(sizes) == min(available, 1361) and min(sizes) >= 1 and sizes[-1] == 1
    ideal = np.array(PAPER_SIZES) * min(1.0, available / 1361)
    # Within one image of the exact proportion, but for what the clients raised to one image cost the largest.
    raised = np.maximum(1 - ideal, 0).sum()
    assert np.abs(sizes - np.maximum(ideal, 1)).max() <= 1 + raised


@quick
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), seeds, st.data())
def test_sizes_are_exact_and_as_balanced_as_can_be(sizes: list[int], seed: int, data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=sum(sizes), max_size=120)), np.int64)
    shares = deal(labels, "sizes", seed, sizes=tuple(sizes))
    assert [len(share) for share in shares] == sizes
    joined = np.concatenate(shares)
    assert len(np.unique(joined)) == len(joined) and joined.min() >= 0 and joined.max() < len(labels)
    # Whoever chooses first, the smallest client, misses balance only where a class has run out.
    first = int(np.argmin(sizes))
    counts = np.bincount(labels[shares[first]], minlength=4)
    available = np.bincount(labels, minlength=4)
    assert all(
        counts[few] >= counts[many] - 1 or counts[few] == available[few] for few in range(4) for many in range(4)
    )


def test_one_sample_client_gets_the_highest_label() -> None:
    labels = np.repeat([0, 1, 2], [50, 50, 3])
    shares = deal(labels, "sizes", sizes=(20, 1, 1, 1))
    assert [labels[share].tolist() for share in shares[1:]] == [[2], [2], [2]]


@quick
@given(st.integers(0, 40), st.lists(st.integers(0, 15), min_size=1, max_size=5))
def test_balanced_counts(size: int, available: list[int]) -> None:
    size = min(size, sum(available))
    counts = balanced_counts(size, np.array(available))
    assert counts.sum() == size and (counts <= available).all()
    unfilled = counts[counts < available]
    # Classes that still have images differ by one at most, and none is below a class that ran out.
    assert not unfilled.size or (unfilled.max() - unfilled.min() <= 1 and counts.max() <= unfilled.min() + 1)


@quick
@given(label_arrays, seeds, st.integers(1, 12))
def test_iid_deals_everything_evenly(labels: np.ndarray, seed: int, clients: int) -> None:
    if clients > len(labels):
        with pytest.raises(DataError, match=f"client 'client-.*would get no images: {len(labels)} training images"):
            deal(labels, "iid", seed, clients=clients)
        return
    shares = deal(labels, "iid", seed, clients=clients)
    assert all_once(shares, len(labels))
    for counts in (
        [len(share) for share in shares],
        *(([int((labels[s] == c).sum()) for s in shares]) for c in range(4)),
    ):
        assert max(counts) - min(counts) <= 1


@quick
@given(label_arrays, seeds, st.integers(1, 12), st.sampled_from([0.01, 0.5, 100.0]))
def test_dirichlet_leaves_no_client_without(labels: np.ndarray, seed: int, clients: int, alpha: float) -> None:
    if clients > len(labels):
        with pytest.raises(DataError, match="would get no images"):
            deal(labels, "dirichlet", seed, clients=clients, alpha=alpha)
        return
    shares = deal(labels, "dirichlet", seed, clients=clients, alpha=alpha)
    assert all_once(shares, len(labels)) and min(map(len, shares)) >= 1


def test_dirichlet_skew_follows_alpha() -> None:
    labels = np.tile(np.arange(2), 1000)

    def skew(alpha: float) -> float:
        shares = deal(labels, "dirichlet", clients=10, alpha=alpha)
        return float(np.mean([abs(labels[share].mean() - 0.5) for share in shares]))

    # Of ten clients: nearly pure ones at 0.05, nearly even ones at 1000.
    assert skew(0.05) > 0.3 and skew(1000) < 0.03


@quick
@given(st.lists(st.integers(0, 25), min_size=1, max_size=120), seeds, st.integers(1, 8))
def test_no_patient_at_two_clients(patients: list[int], seed: int, clients: int) -> None:
    groups = [f"p{patient}" for patient in patients]
    labels = np.array(patients) % 2
    if clients > len(set(groups)):
        with pytest.raises(DataError, match="would get no images"):
            deal(labels, "patient", seed, groups=groups, clients=clients)
        return
    shares = deal(labels, "patient", seed, groups=groups, clients=clients)
    assert all_once(shares, len(groups))
    owners = [{groups[index] for index in share} for share in shares]
    assert sum(map(len, owners)) == len(set(groups))
    # Dealing to the emptiest client keeps sizes within the largest patient.
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= max(groups.count(group) for group in groups)


@quick
@given(st.lists(st.integers(0, 25), min_size=20, max_size=120), seeds, st.booleans())
def test_sizes_keep_patients_together(patients: list[int], seed: int, mixed: bool) -> None:
    """A patient may have images of both classes; sizes hold as long as whole patients are there for them."""
    assume(len(set(patients)) >= 5)
    labels = np.arange(len(patients)) % 2 if mixed else np.array(patients) % 2
    shares = deal(labels, "sizes", seed, groups=[f"p{patient}" for patient in patients], sizes=(9, 3, 1))
    owners = [{patients[index] for index in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners))
    joined = np.concatenate(shares)
    assert len(np.unique(joined)) == len(joined)
    # The largest chooses last, and only it may get fewer: what is left is then in nobody's hands but its patients'.
    assert [len(share) for share in shares[1:]] == [3, 1]
    rest = [patient for patient in patients if patient not in owners[1] | owners[2]]
    assert len(shares[0]) == min(9, len(rest))


def test_given_clients_keep_their_images_and_names() -> None:
    split = SplitSettings(kind="given")
    shares = split_clients(np.zeros(4, np.int64), None, ["B", "A", "B", "A"], split, np.random.default_rng(0))
    assert {name: share.tolist() for name, share in shares.items()} == {"A": [1, 3], "B": [0, 2]}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("given", {}, "needs clients: use a manifest"),
        ("patient", {}, "needs patients: use a manifest"),
        ("sizes", {}, "needs split.sizes"),
        ("sizes", {"sizes": (5, 6)}, "ask for 11 images but 10 are there"),
        ("paper", {"labels": [0, 1, 0]}, "client 'client-4' would get no images: 3 training images for 9 clients"),
    ],
)
def test_what_a_split_lacks(kind: str, options: dict[str, Any], message: str) -> None:
    labels = options.pop("labels", [0, 1] * 5)
    with pytest.raises(DataError, match=message):
        deal(labels, kind, **options)


def test_batch_sizes_fit_the_clients() -> None:
    assert batch_sizes(SplitSettings(), (1, 2, 9, 38, 1, 2, 9, 37, 1)) == (1, 2, 4, 4, 1, 2, 8, 8, 1)
    assert batch_sizes(SplitSettings(kind="iid", batch_sizes=(16, 2)), (5, 5)) == (5, 2)
    with pytest.raises(DataError, match="expected 2 numbers, one a client"):
        batch_sizes(SplitSettings(kind="iid", batch_sizes=(4,)), (5, 5))


def test_the_seed_alone_decides() -> None:
    labels = np.arange(300) % 3
    for kind in ("iid", "dirichlet", "sizes"):
        once, again, other = (deal(labels, kind, seed, sizes=(100, 50), clients=5) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
        assert any(not np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_balanced_sample_is_sorted_and_balanced() -> None:
    labels = np.repeat([0, 1], [90, 10])
    kept = balanced_sample(labels, 12, np.random.default_rng(0))
    assert np.bincount(labels[kept]).tolist() == [6, 6] and (np.diff(kept) > 0).all()


@quick
@given(label_arrays.filter(lambda labels: len(labels) > 1), seeds, st.floats(0.01, 0.9))
def test_set_aside_takes_a_share_of_each_class(labels: np.ndarray, seed: int, fraction: float) -> None:
    stay, aside = set_aside(labels, None, fraction, "test", np.random.default_rng(seed))
    assert all_once([stay, aside], len(labels)) and stay.size and aside.size
    for label in range(4):
        taken, whole = int((labels[aside] == label).sum()), int((labels == label).sum())
        assert abs(taken - fraction * whole) <= 1


@quick
@given(st.lists(st.integers(0, 9), min_size=2, max_size=80).filter(lambda p: len(set(p)) > 1), seeds)
def test_set_aside_never_tears_a_patient(patients: list[int], seed: int) -> None:
    groups = [str(patient) for patient in patients]
    stay, aside = set_aside(np.array(patients) % 2, groups, 0.3, "test", np.random.default_rng(seed))
    assert all_once([stay, aside], len(groups)) and stay.size and aside.size
    assert not {groups[index] for index in stay} & {groups[index] for index in aside}


def test_set_aside_needs_two() -> None:
    with pytest.raises(DataError, match="cannot set a test part aside: 1 patients"):
        set_aside(np.zeros(5, np.int64), ["p"] * 5, 0.2, "test", np.random.default_rng(0))

"""How images are dealt to clients: pure functions from labels, patients and settings to index arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from shadow_defense.data.settings import SplitSettings
from shadow_defense.errors import DataError

PAPER_SIZES = (8, 32, 128, 512, 8, 32, 128, 512, 1)
PAPER_BATCH_SIZES = (4, 4, 4, 4, 8, 8, 8, 8, 1)
DEFAULT_BATCH_SIZE = 4

Indices = Int64[np.ndarray, "_"]


def split_clients(
    labels: Int64[np.ndarray, " n"],
    groups: Sequence[str] | None,
    clients: Sequence[str] | None,
    settings: SplitSettings,
    generator: np.random.Generator,
) -> dict[str, Indices]:
    """Deal ``n`` images to clients: disjoint index arrays by client name.

    Args:
        groups: the patient of each image, where known: ``patient``, ``paper`` and ``sizes`` keep them together.
        clients: the client of each image, for ``given``.

    Raises:
        DataError: naming the client that would get no images, or what the kind of split lacks.
    """
    match settings.kind:
        case "given":
            if clients is None:
                raise DataError("split.kind given needs clients: use a manifest with a column 'client'")
            return {name: np.flatnonzero(np.array(clients) == name) for name in sorted(set(clients))}
        case "patient":
            if groups is None:
                raise DataError("split.kind patient needs patients: use a manifest with a column 'patient', or iid")
            shares = deal_groups(labels, groups, settings.clients, generator)
        case "iid":
            shares = deal_evenly(labels, settings.clients, generator)
        case "dirichlet":
            shares = deal_dirichlet(labels, settings.clients, settings.alpha, generator)
        case "paper":
            shares = deal_sizes(labels, paper_sizes(len(labels)), generator, groups)
        case "sizes":
            if not settings.sizes:
                raise DataError("split.kind sizes needs split.sizes: give the images of each client, as in [8, 32]")
            shares = deal_sizes(labels, settings.sizes, generator, groups)
    width = len(str(len(shares)))
    named = {f"client-{number:0{width}}": share for number, share in enumerate(shares, start=1)}
    for name, share in named.items():
        if not share.size:
            raise DataError(
                f"client '{name}' would get no images: {len(labels)} training images for {len(named)} clients; "
                "lower the number of clients or data.public_fraction"
            )
    return named


def batch_sizes(settings: SplitSettings, sizes: Sequence[int]) -> tuple[int, ...]:
    """Batch size of each client, never above its images; the paper's, the given ones, or 4.

    >>> batch_sizes(SplitSettings(kind="iid"), [3, 100])
    (3, 4)
    """
    wanted = settings.batch_sizes or (PAPER_BATCH_SIZES if settings.kind == "paper" else None)
    if wanted is None:
        wanted = (DEFAULT_BATCH_SIZE,) * len(sizes)
    if len(wanted) != len(sizes):
        raise DataError(f"split.batch_sizes {list(wanted)}: expected {len(sizes)} numbers, one a client")
    return tuple(min(batch, size) for batch, size in zip(wanted, sizes, strict=True))


def paper_sizes(available: int) -> tuple[int, ...]:
    """The paper's nine sizes (8, 32, 128, 512 twice and 1; 1361 in all), shrunk where fewer images are there.

    Each size becomes ``floor(size * available / 1361)``, at least 1; what is then left goes one by one to the
    clients that the floor cut most, what is then too much comes from the largest. The last stays at 1. With fewer
    than nine images the last clients get none, which :func:`split_clients` refuses.

    >>> paper_sizes(5000)
    (8, 32, 128, 512, 8, 32, 128, 512, 1)
    >>> paper_sizes(100)
    (1, 2, 9, 38, 1, 2, 9, 37, 1)
    """
    whole = sum(PAPER_SIZES)
    if available >= whole:
        return PAPER_SIZES
    if available < len(PAPER_SIZES):
        return (1,) * available + (0,) * (len(PAPER_SIZES) - available)
    ideal = np.array(PAPER_SIZES) * available / whole
    sizes = np.maximum(1, np.floor(ideal).astype(np.int64))
    while sizes.sum() > available:
        sizes[sizes.argmax()] -= 1
    while sizes.sum() < available:
        sizes[:-1][(ideal - sizes)[:-1].argmax()] += 1
    return tuple(sizes.tolist())


def balanced_counts(size: int, available: Int64[np.ndarray, " classes"]) -> Int64[np.ndarray, " classes"]:
    """How many of each class make ``size`` images, as equal as ``available`` allows; odd ones go to high labels.

    >>> balanced_counts(9, np.array([100, 100])).tolist(), balanced_counts(9, np.array([2, 100])).tolist()
    ([4, 5], [2, 7])
    """
    counts = np.zeros_like(available)
    while (missing := size - int(counts.sum())) > 0:
        unfilled = np.flatnonzero(counts < available)
        share = missing // len(unfilled)
        if share:
            counts[unfilled] += np.minimum(share, available[unfilled] - counts[unfilled])
        else:
            counts[unfilled[-missing:]] += 1
    return counts


def balanced_sample(labels: Int64[np.ndarray, " n"], size: int, generator: np.random.Generator) -> Indices:
    """``size`` random indices, as balanced over the classes as the labels allow, in ascending order."""
    return np.sort(deal_sizes(labels, (min(size, len(labels)),), generator)[0])


def deal_sizes(
    labels: Int64[np.ndarray, " n"],
    sizes: Sequence[int],
    generator: np.random.Generator,
    groups: Sequence[str] | None = None,
) -> list[Indices]:
    """Shares of exactly ``sizes``, each balanced over the classes as far as the images allow.

    Small clients choose first, since one image more or less of a class matters to them. A client with one image
    gets the highest label (in medical sets: the patient, not the healthy), for it is the one most exposed. No patient
    is at two clients: what a client leaves of a patient's images nobody gets, so that the largest may get fewer.
    """
    if sum(sizes) > len(labels):
        raise DataError(f"split.sizes ask for {sum(sizes)} images but {len(labels)} are there: lower them")
    patients = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    classes = int(labels.max(initial=0)) + 1
    pools = [
        _patient_by_patient(generator.permutation(np.flatnonzero(labels == label)), patients)
        for label in range(classes)
    ]
    shares: list[Indices] = [np.zeros(0, np.int64)] * len(sizes)
    for client in np.argsort(sizes, kind="stable"):
        available = np.array([len(pool) for pool in pools])
        counts = balanced_counts(min(sizes[client], int(available.sum())), available)
        share = np.concatenate([pool[:count] for pool, count in zip(pools, counts, strict=True)])
        pools = [pool[~np.isin(patients[pool], patients[share])] for pool in pools]
        shares[client] = generator.permutation(share)
    return shares


def _patient_by_patient(order: Indices, patients: Int64[np.ndarray, " n"]) -> Indices:
    """Every patient's images one after another, where the first of them stood."""
    first: dict[int, int] = {}
    places = [first.setdefault(int(patient), place) for place, patient in enumerate(patients[order])]
    return order[np.argsort(places, kind="stable")]


def deal_evenly(labels: Int64[np.ndarray, " n"], clients: int, generator: np.random.Generator) -> list[Indices]:
    """All images in random shares of equal size (within one), each class spread evenly as well."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return [generator.permutation(order[client::clients]) for client in range(clients)]


def deal_dirichlet(
    labels: Int64[np.ndarray, " n"], clients: int, alpha: float, generator: np.random.Generator
) -> list[Indices]:
    """All images; each class in shares drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335).

    A client that would go empty gets one image from the largest.
    """
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        pool = generator.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(generator.dirichlet([alpha] * clients)) * len(pool)).astype(np.int64)
        for client, piece in enumerate(np.split(pool, ends[:-1])):
            parts[client].append(piece)
    shares = [generator.permutation(np.concatenate([np.zeros(0, np.int64), *pieces])) for pieces in parts]
    for client, share in enumerate(shares):
        largest = max(range(clients), key=lambda other: len(shares[other]))
        if not share.size and len(shares[largest]) > 1:
            shares[client], shares[largest] = shares[largest][:1], shares[largest][1:]
    return shares


def deal_groups(
    labels: Int64[np.ndarray, " n"], groups: Sequence[str], clients: int, generator: np.random.Generator
) -> list[Indices]:
    """All images; no patient at two clients, sizes as even as possible.

    Patients with the most images go first, each to the client with the fewest images so far (longest processing
    time first: Graham 1969), among equals to the one with the fewest of the patient's class.
    """
    members = group_members(groups)
    members = [members[index] for index in generator.permutation(len(members))]
    shares: list[list[int]] = [[] for _ in range(clients)]
    of_class = np.zeros((clients, int(labels.max(initial=0)) + 1), dtype=np.int64)
    for indices in sorted(members, key=len, reverse=True):
        label = labels[indices[0]]
        client = min(range(clients), key=lambda other: (len(shares[other]), of_class[other, label], other))
        shares[client].extend(indices.tolist())
        np.add.at(of_class[client], labels[indices], 1)
    return [np.array(share, dtype=np.int64) for share in shares]


def group_members(groups: Sequence[str]) -> list[Indices]:
    """The indices of each patient's images, patients in order of appearance."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in members.values()]

"""From settings to a federated data set: read, set parts aside, deal to clients, measure the normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shadow_defense.data.dataset import (
    ClientData,
    FederatedDataset,
    ImageSet,
    Normalisation,
    Parts,
    concatenated,
    measure_normalisation,
)
from shadow_defense.data.duplicates import without
from shadow_defense.data.joining import joined
from shadow_defense.data.set_aside import set_aside
from shadow_defense.data.settings import DataSettings
from shadow_defense.data.sources import read_source
from shadow_defense.data.splits import (
    PAPER_SIZES,
    Indices,
    balanced_sample,
    batch_sizes,
    deal_evenly,
    deal_groups,
    split_clients,
)
from shadow_defense.errors import DataError, shown
from shadow_defense.seeds import seed_for


def load_dataset(settings: DataSettings, seed: int) -> FederatedDataset:
    """Read the images and deal them to the clients; the same settings and seed give the same data set.

    In this order: training images above ``limit`` are left out; where the source has no such part, the test part is
    cut from the training images, then the public part from what remains, then the validation part from what the
    clients then hold, each by patient where patients are known. Public images that stand byte for byte in another
    part are dropped. Each client gets an equal share of the validation and of the test images (whole patients
    where known). Sample ids come from the source and do not depend on any of this.

    Raises:
        DataError: one line that names the file, the client or the setting to correct.
    """
    read = read_source(settings, seed)
    parts = _limited(read if settings.joined is None else joined(read, settings.joined), settings.limit, seed)
    pool = _Pool(parts, settings, seed)
    test = parts.test or pool.cut("test", settings.test_fraction)
    public = _public(parts, pool, settings, seed)
    validation = parts.validation or pool.cut("validation", settings.validation_fraction)
    train = parts.train.subset(pool.rest)
    shares = pool.deal()
    sizes = [len(share) for share in shares.values()]
    used = train.subset(np.sort(np.concatenate(list(shares.values()))))
    distinct = without(public, train, validation, test)
    clients = tuple(
        ClientData(name, train.subset(share), validation.subset(own_validation), test.subset(own_test), batch_size)
        for (name, share), own_validation, own_test, batch_size in zip(
            shares.items(),
            _even_shares(validation, len(shares), seed, "validation"),
            _even_shares(test, len(shares), seed, "test"),
            batch_sizes(settings.split, sizes),
            strict=True,
        )
    )
    notes = [*parts.notes]
    empty = [name for label, name in enumerate(parts.class_names) if not (parts.train.labels == label).any()]
    if empty:
        notes.append(f"no training image is of class {shown(', '.join(empty))}: labels may count from 1, not from 0")
    if settings.split.kind == "paper" and sum(sizes) < sum(PAPER_SIZES):
        notes.append(f"the paper's clients hold {sum(PAPER_SIZES)} images: shrunk in proportion to {sum(sizes)}")
    if len(used) < len(train):
        notes.append(f"{len(train) - len(used)} training images are dealt to no client")
    if len(distinct) < len(public):
        notes.append(f"{len(public) - len(distinct)} public images dropped: they stand in another part too")
    return FederatedDataset(
        name=settings.source if settings.path is None else settings.path.stem,
        clients=clients,
        public=distinct,
        test=test,
        class_names=parts.class_names,
        normalisation=_normalisation(distinct if len(distinct) else used, settings),
        notes=tuple(notes),
    )


def _random(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, "data", purpose))


def _limited(parts: Parts, limit: int | None, seed: int) -> Parts:
    """At most ``limit`` training images, balanced over the classes."""
    if limit is None or len(parts.train) <= limit:
        return parts
    kept = balanced_sample(parts.train.labels.numpy(), limit, _random(seed, "limit"))
    clients = None if parts.clients is None else tuple(parts.clients[index] for index in kept)
    return replace(parts, train=parts.train.subset(kept), clients=clients)


class _Pool:
    """The training images of a source, and which of them are not yet set aside."""

    def __init__(self, parts: Parts, settings: DataSettings, seed: int) -> None:
        self._parts, self._settings, self._seed = parts, settings, seed
        self.rest: Indices = np.arange(len(parts.train))

    def _clients(self) -> list[str] | None:
        return None if self._parts.clients is None else [self._parts.clients[index] for index in self.rest]

    def cut(self, purpose: str, fraction: float) -> ImageSet:
        """Set a part aside: the images that it holds."""
        left = self._parts.train.subset(self.rest)
        strata = left.labels.numpy()
        clients = self._clients()
        if self._settings.split.kind == "given" and clients is not None:
            # Every named client gives its share, or a small one could be left with nothing.
            strata = strata + len(self._parts.class_names) * np.unique(clients, return_inverse=True)[1]
        stay, aside = set_aside(strata, left.groups, fraction, purpose, _random(self._seed, purpose))
        taken = self._parts.train.subset(self.rest[aside])
        self.rest = self.rest[stay]
        return taken

    def deal(self) -> dict[str, Indices]:
        """Deal what is left to the clients: indices into ``rest`` by client name."""
        left = self._parts.train.subset(self.rest)
        clients = self._clients()
        generator = _random(self._seed, "split")
        shares = split_clients(left.labels.numpy(), left.groups, clients, self._settings.split, generator)
        for name in sorted(set(self._parts.clients or ()) if self._settings.split.kind == "given" else ()):
            if name not in shares:
                raise DataError(f"client '{name}' has no images left to train on: give it more, or split.kind iid")
        return shares


def _public(parts: Parts, pool: _Pool, settings: DataSettings, seed: int) -> ImageSet:
    """The public images: of another source, or marked by this one, or cut from its training images."""
    if settings.public_source is None and settings.public_path is None:
        if parts.public is not None:
            return parts.public
        return pool.cut("public", settings.public_fraction) if settings.public_fraction else parts.train.subset([])
    height, width = parts.train.image_size
    other = read_source(
        settings.model_copy(
            update={
                "source": settings.public_source or settings.source,
                "path": settings.public_path,
                "image_size": height if height == width else None,
                "channels": parts.train.channels,
                "classes": None,
                # Other images have other values.
                "grey_range": settings.grey_range if settings.public_source in (None, settings.source) else None,
            }
        ),
        # A seed of its own: a phantom that is its own public source must not draw the same images again.
        seed_for(seed, "data", "public source"),
    )
    sets = [images for images in (other.train, other.validation, other.test, other.public) if images is not None]
    if sets[0].image_size != parts.train.image_size:
        raise DataError(f"public images are {sets[0].image_size}, the others {parts.train.image_size}: set image_size")
    return concatenated(sets, "public/")


def _even_shares(images: ImageSet, clients: int, seed: int, purpose: str) -> list[Indices]:
    generator = _random(seed, f"{purpose} shares")
    if images.groups is None:
        return deal_evenly(images.labels.numpy(), clients, generator)
    return deal_groups(images.labels.numpy(), images.groups, clients, generator)


def _normalisation(images: ImageSet, settings: DataSettings) -> Normalisation:
    measured = measure_normalisation(images)
    mean, std = settings.mean or measured.mean, settings.std or measured.std
    if len(mean) != images.channels or len(std) != images.channels or min(std) <= 0:
        raise DataError(
            f"data.mean {list(mean)} and data.std {list(std)}: expected {images.channels} numbers each, "
            "deviations above 0"
        )
    return Normalisation(mean, std)

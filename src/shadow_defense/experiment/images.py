"""The images of a federation, and what is measured on them once."""

from __future__ import annotations

import hashlib
import math
import statistics
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from shadow_defense.data.build import load_dataset
from shadow_defense.data.dataset import ClientData, FederatedDataset, measure_contrast
from shadow_defense.data.settings import DataSettings
from shadow_defense.federated.averaged_clients import as_one_client


class Images:
    """The images of a federation, loaded when they are first asked for, and what is measured on them once."""

    def __init__(self, settings: DataSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    @cached_property
    def dataset(self) -> FederatedDataset:
        return load_dataset(self.settings, self.seed)

    @cached_property
    def mean_image(self) -> Tensor:
        """The mean of the public images, (c, h, w) in [0, 1]; mid-grey where there are none."""
        public = self.dataset.public
        if len(public) == 0:
            return torch.full((self.dataset.channels, *self.dataset.image_size), 0.5)
        return public.images.float().mean(0) / 255

    @cached_property
    def usual_contrast(self) -> float | None:
        """Of the normalised public images; None where there are none."""
        public = self.dataset.public
        return measure_contrast(public, self.dataset.normalisation) if len(public) else None

    @cached_property
    def brightness(self) -> tuple[float, float]:
        """Mean and standard deviation of the public images' mean normalised pixel; 0 and 1 for fewer than two."""
        public = self.dataset.public
        if len(public) < 2:
            return 0.0, 1.0
        # Sums of floats differ in their last digit with the number of threads; these do not.
        sums = public.images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64)
        pixels = sums.double() / math.prod(public.image_size)
        each = self.dataset.normalisation.apply(pixels / 255).mean(dim=(1, 2, 3)).tolist()
        return statistics.fmean(each), statistics.stdev(each)

    @cached_property
    def all_clients(self) -> ClientData:
        """All clients as one, with batches of all their batches together: an average is nearly this one's update."""
        return as_one_client(self.dataset.clients)

    @cached_property
    def sha256(self) -> str:
        """Of all pixels and labels in their places: two runs with the same hash saw the same federation."""
        data, digest = self.dataset, hashlib.sha256()
        clients = (part for client in data.clients for part in (client.train, client.validation))
        for part in (data.public, data.test, *clients):
            digest.update(part.images.contiguous().numpy().tobytes())
            digest.update(part.labels.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def ids_sha256(self) -> str:
        """Of all images' names and patients: draws of one image are seeded by its name."""
        data = self.dataset
        clients = (part for client in data.clients for part in (client.train, client.validation))
        named = [(part.sample_ids, part.groups) for part in (data.public, data.test, *clients)]
        return hashlib.sha256(repr(named).encode()).hexdigest()

    @cached_property
    def public_sha256(self) -> str:
        """Of the public images' pixels, which are all that a generator is trained on."""
        return hashlib.sha256(self.dataset.public.images.contiguous().numpy().tobytes()).hexdigest()

    @cached_property
    def masks_sha256(self) -> str | None:
        """Of the lesion masks of all clients, which :attr:`sha256` leaves out; None where the data has none."""
        masks = [client.train.masks for client in self.dataset.clients if client.train.masks is not None]
        if not masks:
            return None
        return hashlib.sha256(b"".join(each.contiguous().numpy().tobytes() for each in masks)).hexdigest()


@lru_cache(maxsize=4)
def shared_images(settings: str, seed: int) -> Images:
    """Of settings in JSON; kept in each process, since they take seconds to load."""
    return Images(DataSettings.model_validate_json(settings), seed)

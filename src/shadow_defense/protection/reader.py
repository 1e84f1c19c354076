"""What a network sees of an image: a few numbers of unit variance, those that tell the classes apart first."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.data.dataset import Normalisation
from shadow_defense.errors import DataError
from shadow_defense.models.build import build_model
from shadow_defense.models.convnet import ConvNet
from shadow_defense.protection.directions import MODEL, Classifier

AT_ONCE = 256
LEAST_VARIANCE = 1e-12


class Reader(nn.Module):
    """``phi(x) = R^T (f(x) - mean f)``, f what the last layer of a small classifier reads (docs/protect.md).

    Args:
        features: f of normalised images, before it is flattened.
        reads: R, such that phi has mean 0 and covariance I over public images.
    """

    def __init__(
        self,
        features: nn.Module,
        normalisation: Normalisation,
        centre: Float[Tensor, " q"],
        reads: Float[Tensor, "q k"],
    ) -> None:
        super().__init__()
        self.features = _constant(features)
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(-1, 1, 1))
        self.register_buffer("centre", centre)
        self.register_buffer("reads", reads)
        self._last: tuple[Tensor, int, Tensor] | None = None

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Of images in [0, 1]."""
        read = self.features((images - self.get_buffer("mean")) / self.get_buffer("std")).flatten(1)
        return (read - self.get_buffer("centre")) @ self.get_buffer("reads")

    def numbers(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The same without a gradient, in parts; not again for the images just read, of which each strength asks."""
        if self._last is not None:
            last, version, numbers = self._last
            same = last.data_ptr() == images.data_ptr() and last.shape == images.shape and last._version == version
            if same and last.stride() == images.stride():
                return numbers
        with torch.no_grad():
            numbers = torch.cat([self(part) for part in images.split(AT_ONCE)])
        self._last = (images, images._version, numbers)
        return numbers


def measure_reader(classifier: Classifier, public: Float[Tensor, "n c h w"], count: int) -> Reader:
    """The numbers of a :data:`~.directions.MODEL`: what separates the classes, whitened; then the principal components
    of what its last layer reads beside that.

    Raises:
        DataError: when it tells fewer numbers of the images than are asked for.
    """
    network = classifier.model
    assert isinstance(network, ConvNet)
    with torch.no_grad():
        parts = [network.features(classifier.normalisation.apply(part)).flatten(1) for part in public.split(AT_ONCE)]
    read = torch.cat(parts).double()
    centre = read.mean(dim=0)
    centred, images = read - centre, len(read)
    weight = network.classifier.weight.detach().double()
    chosen = _whitened((weight - weight.mean(dim=0))[:-1].T, centred)[:, :count]
    more = count - chosen.shape[1]
    if more >= min(images - 1, centred.shape[1]):
        raise DataError(f"{count} features were asked for, of {images} public images: ask for fewer (--set directions)")
    if more:
        said = centred @ chosen
        rest = centred - said @ (said.T @ centred) / images
        # Its principal components by the smaller of the two products: of large images f has many more numbers.
        along = torch.linalg.eigh(rest @ rest.T).eigenvectors.flip(1)[:, :more]
        others = rest.T @ along
        # Read off the whole: what they share with the first numbers is taken off.
        others = others - chosen @ (said.T @ (centred @ others)) / images
        chosen = torch.cat([chosen, _whitened(others, centred)], dim=1)
    return Reader(network.features, classifier.normalisation, centre.float(), chosen.float())


def read_reader(tensors: dict[str, Tensor], shape: tuple[int, int, int]) -> Reader:
    """That of a state dict, for images of (channels, height, width); KeyError or RuntimeError where it is no such."""
    channels, height, width = shape
    network = build_model(MODEL, channels=channels, classes=2, image_size=(height, width), seed=0)
    assert isinstance(network, ConvNet)
    nothing = Normalisation.none(channels)
    reader = Reader(network.features, nothing, torch.zeros_like(tensors["centre"]), torch.zeros_like(tensors["reads"]))
    reader.load_state_dict(tensors)
    return reader


def _constant(network: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: a part of the state of the model that it goes before, and nothing to train."""
    copied = copy.deepcopy(network).eval()
    for module in copied.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach())
    return copied


def _whitened(reads: Float[Tensor, "q k"], centred: Float[Tensor, "n q"]) -> Float[Tensor, "q k"]:
    """Combinations of ``reads`` by which the numbers have covariance I, those that differ most first."""
    covariance = torch.cov((centred @ reads).T).reshape(reads.shape[1], reads.shape[1])
    values, vectors = torch.linalg.eigh(covariance)
    return (reads @ vectors / values.clamp_min(LEAST_VARIANCE).sqrt()).flip(1)

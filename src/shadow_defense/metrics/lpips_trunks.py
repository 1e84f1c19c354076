"""The two AlexNets whose features LPIPS compares, and how their weights are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shadow_defense.data.archive import read_arrays
from shadow_defense.errors import DataError, ModelError, SnapshotError
from shadow_defense.models.weights import read_state
from shadow_defense.torch_files import read_torch_file

CHANNELS = (3, 64, 192, 384, 256, 256)
KERNEL_SIZES = (11, 5, 3, 3, 3)
PADDINGS = (2, 2, 1, 1, 1)

# Where the convolutions stand in the published file of shift-tolerant LPIPS.
_SHIFT_TOLERANT_CONVOLUTIONS = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")

_TORCHVISION_CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Where the convolutions stand in torchvision's ``alexnet().features``."""


@dataclass(frozen=True)
class LpipsWeights:
    """Five convolutions (out, in, height, width) with biases, and five linear heads, one weight per channel.

    Raises:
        ModelError: naming ``origin``, when a shape differs from AlexNet's or a head has a negative weight.
    """

    origin: str
    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for i, size in enumerate(KERNEL_SIZES):
            expected = {
                "kernel": (self.kernels[i], (CHANNELS[i + 1], CHANNELS[i], size, size)),
                "bias": (self.biases[i], (CHANNELS[i + 1],)),
                "head": (self.heads[i], (CHANNELS[i + 1],)),
            }
            for part, (tensor, shape) in expected.items():
                if tuple(tensor.shape) != shape:
                    raise ModelError(
                        f"{self.origin}: {part} {i} has shape {tuple(tensor.shape)}, expected {shape}; "
                        "give weights of LPIPS with an AlexNet trunk"
                    )
            if (self.heads[i] < 0).any():
                raise ModelError(
                    f"{self.origin}: head {i} has a negative weight, so its result would not be a distance; "
                    "give the published weights"
                )


def read_shift_tolerant_weights(path: Path | None) -> LpipsWeights:
    """Weights of shift-tolerant LPIPS from the published file, by default the one in the installed package.

    The package itself is located but not imported: it wants torchvision, IPython and torchsummary.

    Raises:
        ModelError: when the package or the file is missing, or the file is not what is expected.
    """
    if path is None:
        folder = package_folder("stlpips_pytorch")
        if folder is None:
            raise ModelError(
                "st-lpips needs the weights in the package stlpips-pytorch: pip install 'shadow-defense[lpips]', or "
                "name a file"
            )
        path = folder / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    try:
        state: Any = read_torch_file(path)
        return LpipsWeights(
            origin=str(path),
            kernels=tuple(state[f"net.{name}.weight"] for name in _SHIFT_TOLERANT_CONVOLUTIONS),
            biases=tuple(state[f"net.{name}.bias"] for name in _SHIFT_TOLERANT_CONVOLUTIONS),
            heads=tuple(state[f"lin{i}.model.1.weight"].flatten() for i in range(5)),
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SnapshotError) as error:
        raise ModelError(
            f"cannot read shift-tolerant LPIPS weights from {path} ({type(error).__name__}): "
            "give alex_shift_tolerant.pth of the package stlpips-pytorch"
        ) from error


def read_alexnet_weights(path: Path | None) -> LpipsWeights:
    """Weights of LPIPS v0.1: from torchvision's file of AlexNet with torchmetrics' heads, or all of them from an npz.

    The arrays of the npz are ``AlexNet_0.Conv_{i}.kernel`` (height, width, in, out), ``AlexNet_0.Conv_{i}.bias`` and
    ``NetLinLayer_{i}.Conv_0.kernel`` for i from 0 to 4.

    Raises:
        ModelError: without a path, or when the file is missing or not what is expected.
    """
    if path is None:
        raise ModelError(
            "LPIPS 'alexnet' has no weights of its own: name torchvision's file of AlexNet (.pth), an npz of LPIPS "
            "v0.1 weights, or use 'st-lpips'"
        )
    if path.suffix in (".pth", ".pt"):
        return _read_torchvision(path)
    try:
        file = read_arrays(path)
        kernels = [file[f"AlexNet_0.Conv_{i}.kernel"].transpose(3, 2, 0, 1) for i in range(5)]
        biases = [file[f"AlexNet_0.Conv_{i}.bias"] for i in range(5)]
        heads = [file[f"NetLinLayer_{i}.Conv_0.kernel"].reshape(-1) for i in range(5)]
    except (DataError, KeyError, ValueError) as error:
        raise ModelError(
            f"cannot read LPIPS weights from {path} ({error}): give an npz with AlexNet_0.Conv_{{i}}.kernel, .bias and "
            "NetLinLayer_{i}.Conv_0.kernel, i = 0 to 4"
        ) from error

    def tensors(arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for array in arrays)

    return LpipsWeights(str(path), tensors(kernels), tensors(biases), tensors(heads))


def _read_torchvision(path: Path) -> LpipsWeights:
    """AlexNet by torchvision's names; the heads are in torchmetrics' wheel, of whose Python nothing is imported."""
    folder = package_folder("torchmetrics")
    assert folder is not None
    try:
        state = read_state(path)
        # Of an installed package, and written by Python 2, whose pickles read_state does not know.
        file = folder / "functional" / "image" / "lpips_models" / "alex.pth"
        heads = torch.load(file, map_location="cpu", weights_only=True)
        return LpipsWeights(
            origin=str(path),
            kernels=tuple(state[f"features.{place}.weight"] for place in _TORCHVISION_CONVOLUTIONS),
            biases=tuple(state[f"features.{place}.bias"] for place in _TORCHVISION_CONVOLUTIONS),
            heads=tuple(heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)),
        )
    except KeyError as error:
        raise ModelError(
            f"cannot read AlexNet from {path}: it has no tensor {error}; give torchvision's alexnet-owt-*.pth"
        ) from error


def package_folder(name: str) -> Path | None:
    """Where an installed package lies, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or not spec.submodule_search_locations else Path(spec.submodule_search_locations[0])


class _Convolutions(nn.Module):
    """AlexNet's five convolutions with fixed weights."""

    first_stride: int

    def __init__(self, weights: LpipsWeights) -> None:
        super().__init__()
        for i, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
            self.register_buffer(f"kernel_{i}", kernel)
            self.register_buffer(f"bias_{i}", bias)

    def convolve(self, i: int, features: Float[Tensor, "n a h w"]) -> Float[Tensor, "n b x y"]:
        kernel, bias = self.get_buffer(f"kernel_{i}"), self.get_buffer(f"bias_{i}")
        stride = self.first_stride if i == 0 else 1
        return F.conv2d(features, kernel, bias, stride=stride, padding=PADDINGS[i])


class AlexNetTrunk(_Convolutions):
    """AlexNet's five activations (Krizhevsky 2014, the one-tower form), as LPIPS v0.1 taps them."""

    first_stride = 4

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Five activations (n, channels, height, width), from fine to coarse."""
        features = images
        activations = []
        for i in range(5):
            if i in (1, 2):
                features = F.max_pool2d(features, kernel_size=3, stride=2)
            features = F.relu(self.convolve(i, features))
            activations.append(features)
        return activations


def blur_and_halve(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c x y"]:
    """A binomial low-pass (1, 2, 1) along both axes, then every second pixel; 2 px mirrored on each side.

    Halving after a low-pass keeps the features nearly unchanged when the image moves by a pixel (Zhang 2019,
    "Making convolutional networks shift-invariant again"; the wide margin: Ghildyal and Liu 2022).
    """
    binomial = features.new_tensor([0.25, 0.5, 0.25])
    channels = features.shape[1]
    padded = F.pad(features, (2, 2, 2, 2), mode="reflect")
    kernel = torch.outer(binomial, binomial).expand(channels, 1, 3, 3)
    return F.conv2d(padded, kernel, stride=2, groups=channels)


class ShiftTolerantTrunk(_Convolutions):
    """AlexNet with every stride replaced by a low-pass and a halving (Ghildyal and Liu, ECCV 2022)."""

    first_stride = 1

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Five activations (n, channels, height, width), from fine to coarse."""
        # The first low-pass stands before the activation, the later ones after the pool.
        features = F.relu(blur_and_halve(self.convolve(0, images)))
        activations = [features]
        for i in range(1, 5):
            if i in (1, 2):
                features = blur_and_halve(F.max_pool2d(features, kernel_size=3, stride=1))
            features = F.relu(self.convolve(i, features))
            activations.append(features)
        return activations


@dataclass(frozen=True)
class LpipsKind:
    """How one LPIPS reads its weights and what computes its features."""

    read_weights: Callable[[Path | None], LpipsWeights]
    trunk: type[AlexNetTrunk] | type[ShiftTolerantTrunk]


KINDS = {
    "st-lpips": LpipsKind(read_shift_tolerant_weights, ShiftTolerantTrunk),
    "alexnet": LpipsKind(read_alexnet_weights, AlexNetTrunk),
}

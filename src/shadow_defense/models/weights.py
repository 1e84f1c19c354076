"""ImageNet weights from a file with torchvision's tensor names, or with MONAI's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from shadow_defense.errors import ModelError, SnapshotError
from shadow_defense.files import check_tensor_file
from shadow_defense.models.tensor_names import under_own_names
from shadow_defense.torch_files import read_torch_file

IMAGENET_STEM = (64, 3, 7, 7)
"""Shape of the first convolution's weight in torchvision's ResNet-18 and DenseNet-121."""


@dataclass(frozen=True)
class TorchvisionNames:
    """How torchvision names the tensors of a model.

    Attributes:
        model: the model's name, for messages.
        stem: torchvision's name of the first convolution's weight.
        head: torchvision's name of the last linear layer.
        renamed: (part of this project's tensor name, part of torchvision's), applied in this order.
    """

    model: str
    stem: str
    head: str
    renamed: tuple[tuple[str, str], ...]

    def to_torchvision(self, name: str) -> str:
        """torchvision's name of one of the model's tensors.

        >>> names = TorchvisionNames("densenet121", "features.conv0.weight", "classifier", ((".layers.", "."),))
        >>> names.to_torchvision("features.denseblock1.denselayer1.layers.norm1.weight")
        'features.denseblock1.denselayer1.norm1.weight'
        """
        for ours, theirs in self.renamed:
            name = name.replace(ours, theirs)
        return name


def load_imagenet_weights(model: nn.Module, names: TorchvisionNames, path: Path) -> None:
    """Copy the weights in ``path`` into ``model``, all of them or none.

    Two layers may differ from the file: a head for another number of classes stays as it was initialised, and so
    does the small stem. A first convolution for three channels is summed over them where the model takes one, so
    that a grey image gives what it would give repeated three times. Counters of batches may be missing: files
    older than PyTorch 0.4.1 have none, and nothing reads them.

    Raises:
        ModelError: when the file cannot be read, or any other tensor is missing, unexpected, of another shape, or
            not finite.
    """
    tensors, _ = under_own_names(read_state(path), model.state_dict(), (names.to_torchvision,))
    given = {names.to_torchvision(name): tensor for name, tensor in tensors.items()}
    places = {names.to_torchvision(name): tensor for name, tensor in model.state_dict().items()}
    _fit_stem(given, places, names.stem)
    _fit_head(given, places, names.head)
    required = [name for name in places if not name.endswith("num_batches_tracked")]
    problems = [
        *(f"tensor '{name}' is missing" for name in required if name not in given),
        *(f"tensor '{name}' is unexpected" for name in given if name not in places),
        *(
            f"tensor '{name}' has shape {tuple(given[name].shape)}, expected {tuple(place.shape)}"
            for name, place in places.items()
            if name in given and given[name].shape != place.shape
        ),
        *(f"tensor '{name}' is not finite" for name, tensor in given.items() if not tensor.isfinite().all()),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(
            f"weights {path} do not fit {names.model}: {problems[0]}{more}; "
            f"give the state dict of torchvision's {names.model}"
        )
    for name, tensor in given.items():
        places[name].copy_(tensor)


def _fit_stem(given: dict[str, Tensor], places: dict[str, Tensor], stem: str) -> None:
    """Fit the file's first convolution to a model with the small stem or with one channel."""
    if stem not in given or tuple(given[stem].shape) != IMAGENET_STEM:
        return
    channels, kernel = places[stem].shape[1], places[stem].shape[2]
    if kernel != IMAGENET_STEM[2]:
        given[stem] = places[stem]
    elif channels == 1:
        given[stem] = given[stem].sum(dim=1, keepdim=True)


def _fit_head(given: dict[str, Tensor], places: dict[str, Tensor], head: str) -> None:
    """Leave the model's own head where the file's is the same layer for another number of classes."""
    weight, bias = f"{head}.weight", f"{head}.bias"
    if weight not in given or bias not in given or given[weight].dim() != 2:
        return
    classes, features = given[weight].shape
    if classes != len(places[bias]) and features == places[weight].shape[1] and given[bias].shape == (classes,):
        given[weight], given[bias] = places[weight], places[bias]


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file; nothing but tensors is unpickled.

    Raises:
        ModelError: when the file is missing, damaged, of another kind, or holds anything but named tensors.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ModelError(f"cannot read weights {path}: expected a .safetensors, .pth or .pt file")
    try:
        path = path.expanduser()
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            check_tensor_file(path)
            state: object = load_file(path)
        else:
            state = read_torch_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"no weights at {path}: give the path of a .safetensors, .pth or .pt file") from error
    except SnapshotError as error:
        raise ModelError(
            f"refused weights {path}: {error}; give a state dict of tensors, best as .safetensors"
        ) from error
    except Exception as error:  # a damaged file can make the readers fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot read weights {path}: {reason}; fetch or save the file again") from error
    if not isinstance(state, dict):
        raise ModelError(f"weights {path} hold a {type(state).__name__}: expected a dict of named tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(
                f"weights {path}: entry '{name}' is a {type(tensor).__name__}, expected a tensor; "
                "save only the model's state dict"
            )
    return dict(state)

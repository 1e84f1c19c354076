"""Which side of its kinks a network was on in one forward pass, and another pass on the same sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELU = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_LEAKY = (F.leaky_relu, F.leaky_relu_)
_MAX_POOLING = (F.max_pool2d, torch.max_pool2d)


class RecordedKinks(TorchFunctionMode):
    """Keeps the outputs of every ReLU and leaky ReLU, and the places of every max pooling's maxima, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _MAX_POOLING:
            found, places = F.max_pool2d_with_indices(*args, **{**given, "return_indices": True})
            self.sides.append(places)
            return found
        found = func(*args, **given)
        if func in _RELU or func in _LEAKY:
            self.sides.append(found.detach())
        return found


class ReplayedKinks(TorchFunctionMode):
    """Runs the same layers as linear maps: each entry passes, or is left out, as it did when ``sides`` were recorded.

    Between the kinks a network is smooth: only so does a difference of two passes tend to the derivative.
    """

    def __init__(self, sides: Iterable[Tensor]) -> None:
        super().__init__()
        self._sides = iter(sides)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _RELU:
            # (z, y) -> z where y > 0, else 0: in one pass, and differentiable in z.
            return torch.ops.aten.threshold_backward(args[0], next(self._sides), 0)
        if func in _LEAKY:
            side, given = next(self._sides), kwargs or {}
            slope = args[1] if len(args) > 1 else given.get("negative_slope", 0.01)
            return torch.where(side > 0, args[0], slope * args[0])
        if func in _MAX_POOLING:
            places = next(self._sides)
            return args[0].flatten(2).gather(2, places.flatten(2)).view(places.shape)
        return func(*args, **(kwargs or {}))

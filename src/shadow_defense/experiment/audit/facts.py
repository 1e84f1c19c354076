"""What can be measured of an update and its model that makes an attack on it work or fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from shadow_defense.attacks.analytic import layer_on_the_image
from shadow_defense.attacks.equal_steps import LIKE_SIGNS, equal_share
from shadow_defense.attacks.label_recovery import last_linear_layer
from shadow_defense.attacks.layer_chain import layer_chain
from shadow_defense.attacks.observation import LocalTraining, Observation
from shadow_defense.errors import ModelError
from shadow_defense.experiment.audit.told import Told
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.batchnorm import batch_norm_layers
from shadow_defense.models.losses import LossName

Exact = Literal["first layer", "chain"]
"""What allows an image to be solved for: a fully connected layer on the image, or a chain that R-GAP walks back."""

HARD = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardtanh)
POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)

HALF_STEP = 2.0**-24
"""Relative error of rounding a number to float32."""


@dataclass(frozen=True)
class Facts:
    """All that :func:`shadow_defense.experiment.audit.diagnosis.diagnose` reads.

    Attributes:
        steps, batch_size: of the local training; None where it is not known.
        optimiser, loss: of the client, where they were told; None: not known.
        image_values: values of one image, channels included.
        update_values: values of the update that an attack matches.
        relative_norm: length of the update relative to that of the parameters it was added to.
        rounding: length of float32's rounding of the parameters, relative to the update's.
        zeros: share of the update's values that are exactly zero.
        zero_tensors: how many of ``tensors`` are zero altogether.
        equal: share of the values other than zero that are equally large (:func:`equal_share`).
        noise: share of the last layer's update that cannot come from SGD on cross entropy (:func:`impossible_share`);
            None where there is no such layer.
        noise_deviation: its standard deviation in each value, if it is the same in all.
        batch_norm: how clients use batch norm, where the model has it.
        statistics_shared: whether batch norm's running statistics are part of the update.
        hard: whether the model has ReLU-like kinks; ``pools``, ``drops``: max pooling, dropout that draws.
        exact: what allows an exact solution, for one image in one step.
        labels_known: whether the labels were given.
    """

    samples: int
    steps: int | None
    batch_size: int | None
    optimiser: OptimiserName | None
    loss: LossName | None
    image_values: int
    update_values: int
    tensors: int
    relative_norm: float
    rounding: float
    zeros: float
    zero_tensors: int
    equal: float
    noise: float | None
    noise_deviation: float | None
    batch_norm: Literal["train", "eval"] | None
    statistics_shared: bool
    hard: bool
    pools: bool
    drops: bool
    exact: Exact | None
    labels_known: bool

    @property
    def like_signs(self) -> bool:
        """Whether the update looks like the first step of Adam or RMSprop, or like signs alone."""
        return self.equal >= LIKE_SIGNS

    @property
    def plain(self) -> bool | None:
        """Whether the client trained by SGD on cross entropy; None: not known, or not what the update looks like."""
        if self.optimiser not in (None, "sgd") or self.loss not in (None, "ce"):
            return False
        if self.optimiser is None or self.loss is None or self.like_signs:
            return None
        return True


def impossible_share(weight: Float[Tensor, "k d"]) -> float:
    """``||1^T dW|| / ||dW||`` of the last layer's update: 0 for SGD on cross entropy, 1 for white noise.

    The gradient of cross entropy by the logits sums to zero over the classes, ``sum_j (p_j - y_j) = 0``; so the rows
    of ``dW = sum (p - y) h^T`` add up to zero for every batch and any number of SGD steps. Independent noise of
    variance s^2 in all k x d values leaves rows that add up to length ``s sqrt(k d)``, its own length. Weight decay
    leaves the little that it takes from the rows; Adam, RMSprop and other losses leave any sum. 0 for an update of
    zeros.

    >>> impossible_share(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    0.0
    >>> impossible_share(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    1.0
    """
    length = weight.double().norm()
    return (weight.double().sum(dim=0).norm() / length).item() if length > 0 else 0.0


def facts_of(
    observation: Observation, local: LocalTraining | None, labels_known: bool, told: Told | None = None
) -> Facts:
    """Measure an observation; ``local`` is the local training where it is known, to whomever, and ``told`` the rest."""
    told = told or Told(None if local is None else local.optimiser)
    model, update = observation.model, observation.update
    shared = [name for name, _ in model.named_parameters() if name in update.tensors]
    moved = {name: update.tensors[name].detach() for name in shared}
    before = {name: observation.global_state[name].detach() for name in shared}
    values = sum(tensor.numel() for tensor in moved.values())
    length, before_length = _length(moved), _length(before)
    noise, deviation = _noise(model, moved, observation.classes)
    layers = [module for module in model.modules() if not any(True for _ in module.children())]
    norms = [module for module in layers if isinstance(module, _BatchNorm)]
    statistics = [f"{name}.running_mean" for name in batch_norm_layers(model)]
    mode: Literal["train", "eval"] = "train" if any(module.training for module in norms) else "eval"
    return Facts(
        samples=update.samples,
        steps=None if local is None else local.steps,
        batch_size=None if local is None else min(local.batch_size, update.samples),
        optimiser=told.optimiser,
        loss=told.loss,
        image_values=torch.Size(observation.image_shape).numel(),
        update_values=values,
        tensors=len(moved),
        relative_norm=length / before_length if before_length else 0.0,
        rounding=HALF_STEP * before_length / length if length else 0.0,
        zeros=sum(int((tensor == 0).sum()) for tensor in moved.values()) / max(values, 1),
        zero_tensors=sum(not tensor.any() for tensor in moved.values()),
        equal=equal_share(moved.values()),
        noise=noise,
        noise_deviation=deviation,
        batch_norm=mode if norms else None,
        statistics_shared=bool(statistics) and all(name in update.tensors for name in statistics),
        hard=any(isinstance(module, HARD) for module in layers),
        pools=any(isinstance(module, POOLS) for module in layers),
        drops=any(isinstance(module, _DropoutNd) and module.p > 0 and module.training for module in layers),
        exact=_exact(observation),
        labels_known=labels_known,
    )


def _length(tensors: Mapping[str, Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5


def _noise(model: nn.Module, moved: Mapping[str, Tensor], classes: int) -> tuple[float | None, float | None]:
    try:
        weight = moved.get(f"{last_linear_layer(model)}.weight")
    except ModelError:
        return None, None
    # A last layer of another width does not give the logits themselves.
    if weight is None or len(weight) != classes or not weight.any():
        return None, None
    share = impossible_share(weight)
    return share, share * weight.double().norm().item() / weight.numel() ** 0.5


def _exact(observation: Observation) -> Exact | None:
    try:
        layer_on_the_image(observation.model, observation.image_shape)
        return "first layer"
    except ModelError:
        pass
    try:
        links = layer_chain(observation.model, observation.image_shape)
    except ModelError:
        return None
    last = links[-1]
    solvable = isinstance(last.layer, nn.Linear) and last.layer.bias is not None and last.activation is None
    return "chain" if solvable else None

"""What can be measured of an update and its model that makes an attack on it work or fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from shadow_defense.attacks.analytic import layer_on_the_image
from shadow_defense.attacks.equal_steps import equal_share
from shadow_defense.attacks.label_recovery import last_linear_layer
from shadow_defense.attacks.layer_chain import layer_chain
from shadow_defense.attacks.observation import Observation
from shadow_defense.errors import ModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.models.batchnorm import batch_norm_layers
from shadow_defense.models.losses import LossName
from shadow_defense.report.records.audit import Exact, Facts

HARD = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardtanh)
POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)

HALF_STEP = 2.0**-24
"""Relative error of rounding a number to float32."""


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
    observation: Observation,
    local: LocalTraining | None,
    *,
    labels_known: bool,
    optimiser: OptimiserName | None = None,
    loss: LossName | None = None,
) -> Facts:
    """Measure an observation.

    Args:
        local: the local training where it is known, to whomever; ``optimiser`` and ``loss`` likewise.
    """
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
        optimiser=optimiser,
        loss=loss,
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

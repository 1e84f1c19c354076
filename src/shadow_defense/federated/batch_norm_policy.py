"""What of batch norm stays with the clients, and how the global model is run without it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from shadow_defense.data.dataset import FederatedDataset, Normalisation
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.errors import DataError
from shadow_defense.models.batchnorm import batch_norm_layers, batch_norm_names
from shadow_defense.placement import device_of
from shadow_defense.seeds import named_generator

MOST_PUBLIC_IMAGES = 1024
"""Images that running statistics are estimated on, in every round: more cost time and move no digit that counts."""

ESTIMATED_AT_ONCE = 64


def withheld_names(model: nn.Module, policy: SharedBatchNorm) -> frozenset[str]:
    """The state-dict names of what stays with a client, over all batch-norm layers of ``model``.

    ``parameters`` shares scales and shifts (SiloBN, Andreux et al. 2020), ``stats`` running statistics and their
    counter, ``none`` nothing of batch norm (FedBN, Li et al. 2021), ``all`` everything. Other normalisations keep no
    statistics and are shared always.

    >>> sorted(withheld_names(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "stats"))
    ['1.bias', '1.weight']
    """
    parameters = batch_norm_names(model, "parameters") if policy in ("stats", "none") else frozenset[str]()
    buffers = batch_norm_names(model, "buffers") if policy in ("parameters", "none") else frozenset[str]()
    return parameters | buffers


def lacks_statistics(model: nn.Module, policy: SharedBatchNorm, batch_norm: str) -> bool:
    """Whether the global model is without the running statistics that it would be run with in eval mode.

    Args:
        batch_norm: mode that clients train in. In ``eval`` the statistics stand still, with clients and server alike.
    """
    return batch_norm == "train" and policy in ("parameters", "none") and bool(batch_norm_layers(model))


def check_public_images(images: UInt8[Tensor, "n c h w"], policy: SharedBatchNorm) -> None:
    """Raise :class:`DataError` where there are not enough public images to estimate running statistics on."""
    if len(images) < 2:
        raise DataError(
            f"share_bn={policy} keeps running statistics on the clients, and {len(images)} public images are too few "
            "to evaluate the global model with: raise data.public_fraction, set data.public_source, or share_bn to "
            "all or stats"
        )


def public_statistics(
    model: nn.Module,
    state: Mapping[str, Tensor],
    images: UInt8[Tensor, "n c h w"],
    normalisation: Normalisation,
) -> dict[str, Tensor]:
    """The running mean and variance of every batch-norm layer, by state-dict name, estimated anew at ``state``.

    The averages over batches of each batch's mean and unbiased variance, in one forward pass with batch norm in train
    mode and all else in eval mode, so that dropout does not blur them. Batches are drawn once and are of nearly the
    same size, so that no image weighs more than another.

    Args:
        model: left as it was, with its mode, buffers and hooks.
        images: two or more, of which at most :data:`MOST_PUBLIC_IMAGES` are taken.
    """
    estimated = copy.deepcopy(model).eval()
    estimated.load_state_dict(dict(state))
    for layer in batch_norm_layers(estimated).values():
        layer.reset_running_stats()
        # A cumulative average over the batches.
        layer.momentum = None
        layer.train()
    drawn = torch.randperm(len(images), generator=named_generator(0, "public statistics"))[:MOST_PUBLIC_IMAGES]
    with torch.no_grad():
        for batch in drawn.tensor_split(-(-len(drawn) // ESTIMATED_AT_ONCE)):
            estimated(normalisation.apply(images[batch].to(device_of(model)).float() / 255))
    after = estimated.state_dict()
    statistics = (name for name in withheld_names(model, "parameters") if not name.endswith("num_batches_tracked"))
    return {name: after[name].detach().to(state[name].device, copy=True) for name in sorted(statistics)}


def evaluable_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    policy: SharedBatchNorm,
    batch_norm: str,
    dataset: FederatedDataset,
) -> Mapping[str, Tensor]:
    """A global state as it can be run in eval mode: with :func:`public_statistics` where clients keep theirs.

    Args:
        batch_norm: mode that clients train in, ``train`` or ``eval``.

    Raises:
        DataError: where such statistics are needed and there are no public images.
    """
    if not lacks_statistics(model, policy, batch_norm):
        return state
    check_public_images(dataset.public.images, policy)
    return {**state, **public_statistics(model, state, dataset.public.images, dataset.normalisation)}

"""All clients as one: whose update an average is, for an attacker who sees nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from shadow_defense.data.dataset import ClientData, concatenated
from shadow_defense.federated.update import ALL_CLIENTS


def as_one_client(clients: Sequence[ClientData]) -> ClientData:
    """A client with everybody's images, and batches of everybody's batches together.

    After one step each, the average of the clients' updates, weighted by their images, is this one's update.
    """
    train = concatenated([client.train for client in clients])
    masks = [client.train.masks for client in clients if client.train.masks is not None]
    if len(masks) == len(clients):
        train = replace(train, masks=torch.cat(masks))
    return ClientData(
        ALL_CLIENTS,
        train,
        concatenated([client.validation for client in clients]),
        concatenated([client.test for client in clients]),
        sum(min(client.batch_size, len(client.train)) for client in clients),
    )

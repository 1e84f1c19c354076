"""All clients as one: whose update an average is, for an attacker who sees nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from shadow_defense.data.dataset import ClientData, concatenated
from shadow_defense.federated.update import ALL_CLIENTS


def as_one_client(clients: Sequence[ClientData]) -> ClientData:
    """A client with everybody's images, and batches of everybody's batches together.

    After one step each, the average of the clients' updates, weighted by their images, is this one's update.
    """
    return ClientData(
        ALL_CLIENTS,
        concatenated([client.train for client in clients]),
        concatenated([client.validation for client in clients]),
        concatenated([client.test for client in clients]),
        sum(min(client.batch_size, len(client.train)) for client in clients),
    )

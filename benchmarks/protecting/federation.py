"""What a model is worth that unequal clients train together on a data set as it was written."""

from __future__ import annotations

import numpy as np

from shadow_defense.data.dataset import ClientData, ImageSet, Parts, measure_normalisation
from shadow_defense.data.splits import deal_sizes, paper_sizes
from shadow_defense.defenses.base import Defense
from shadow_defense.experiment.protecting.utility import Worth, worth_of_model
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.server import apply_update, average_updates
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.protection.directions import BATCH_SIZE, EPOCHS, LEARNING_RATE
from shadow_defense.seeds import seed_for

TRAINING = TrainingSettings(optimiser="adam", learning_rate=LEARNING_RATE)
"""A round is an epoch of each client, so that the federation sees each image as often as one hospital would."""


def worth_in_a_federation(parts: Parts, *, seed: int, settings: ModelSettings, epochs: int = EPOCHS) -> Worth:
    """FedAvg of the paper's nine clients (8 to 512 images, and one of a single one), then :func:`worth_of_model`."""
    normalisation = measure_normalisation(parts.train)
    channels, size = parts.train.channels, parts.train.image_size
    model = build_model(
        settings, channels=channels, classes=len(parts.class_names), image_size=size, seed=seed_for(seed, "federation")
    )
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for round in range(epochs):
        updates = [
            train_locally(
                model,
                state,
                client,
                Defense(),
                settings=TRAINING,
                round=round,
                normalisation=normalisation,
                loss_fn=TRAINING.loss_function(),
                seed=seed,
            ).update
            for client in nine_clients(parts.train, seed)
        ]
        state = apply_update(state, average_updates(updates))
    model.load_state_dict(state)
    return worth_of_model(model.eval(), normalisation, parts)


def nine_clients(train: ImageSet, seed: int) -> list[ClientData]:
    """The paper's sizes, or the same proportions of fewer images."""
    sizes = paper_sizes(len(train))
    dealt = deal_sizes(train.labels.numpy(), sizes, np.random.default_rng(seed_for(seed, "clients")))
    shares = [train.subset(places) for places in dealt]
    nothing = train.subset([])
    return [
        ClientData(f"client {number}", share, nothing, nothing, min(BATCH_SIZE, len(share)))
        for number, share in enumerate(shares)
    ]

"""A network small enough to work its numbers out by hand, and one client's round of local training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.federated.client import LocalResult, train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings


@pytest.fixture
def toy_gradients() -> dict[str, Tensor]:
    """x = (1, 2), W1 = [[1, 0], [1, 1]], b1 = 0, no activation, W2 = I, b2 = (2, 0), label 0, cross-entropy."""
    return {
        "w1": torch.tensor([[-0.5, -1.0], [0.5, 1.0]]),
        "b1": torch.tensor([-0.5, 0.5]),
        "w2": torch.tensor([[-0.5, -1.5], [0.5, 1.5]]),
        "b2": torch.tensor([-0.5, 0.5]),
    }


def small_model(normalisation: str = "group") -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(16, 16), seed=0)


def image_set(count: int) -> ImageSet:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 16, 16), generator=draws, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 2, tuple(f"image/{index}" for index in range(count)))


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """A small ConvNet for 16 px, by its normalisation; every call gives the same weights."""
    return small_model


@pytest.fixture
def client() -> Callable[..., ClientData]:
    """A client with ``count`` images of 16 px in batches of ``batch_size``."""
    return lambda count=3, batch_size=3: ClientData("site-1", image_set(count), image_set(1), image_set(1), batch_size)


@pytest.fixture
def local_round(client: Callable[..., ClientData]) -> Callable[..., LocalResult]:
    """One round of local SGD at a learning rate of 0.1: by default one step on one batch of three."""

    def train(
        defense: Defense | None = None,
        *,
        normalisation: str = "group",
        count: int = 3,
        batch_size: int = 3,
        round: int = 0,
        state: Mapping[str, Tensor] | None = None,
        **settings: object,
    ) -> LocalResult:
        model = small_model(normalisation)
        start = state or {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return train_locally(
            model,
            start,
            client(count, batch_size),
            defense or Defense(),
            settings=TrainingSettings(**{"learning_rate": 0.1, **settings}),
            round=round,
            normalisation=Normalisation((0.5,), (0.25,)),
            loss_fn=F.cross_entropy,
            seed=0,
        )

    return train

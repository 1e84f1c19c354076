"""Every defense with clients hard to serve: one image, colour, three classes, mixed labels, batch norm that stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.build import DEFENSES, DefenseSettings, Resources
from shadow_defense.defenses.places import SharedBatchNorm
from shadow_defense.federated.batch_norm_policy import withheld_names
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings

SIDE, CLASSES = 16, 3
NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
QUICK: dict[str, dict[str, Any]] = {
    "dcs": {"steps": 2},
    "shadow": {"latent_pretraining": False, "attack_iterations": 1},
    "censor": {"trials": 2},
    "soteria": {"chunk": 64},
    "grad-defense": {"root_images": 3},
    "optimal-noise": {"directions": 2},
    "mixup": {"images": 2},
    "instahide": {"images": 2},
    "protect-once": {"texture": "white"},
}
MANY = {"protect-once"}
"""Measure the covariance of public images."""
ONE_BY_ONE = {"dp-sgd", "grad-defense"}
"""Clip single images, which batch norm forbids."""


def images(count: int, name: str) -> ImageSet:
    draws = torch.Generator().manual_seed(len(name))
    drawn = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8)
    return ImageSet(drawn, (torch.arange(count) + 2) % CLASSES, tuple(f"{name}/{index}" for index in range(count)))


def one_round(name: str, policy: SharedBatchNorm, options: dict[str, Any], normalisation: str = "batch") -> Any:
    chosen = DefenseSettings(defense=name, options=options, share_bn=policy)
    architecture = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    plain = build_model(architecture, channels=3, classes=CLASSES, image_size=(SIDE, SIDE), seed=0)
    model: nn.Module = chosen.adapt_model(plain, 0)
    generator = DCGANGenerator(image_size=SIDE, channels=3, z_dim=4, width=4)
    made = chosen.build(
        Resources(generator, NORMALISATION, images(50 if name in MANY else 4, "public"), CLASSES, "site-1", seed=0)
    )
    made.check_model(model)
    data = images(1, "own")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    made.prepare(NORMALISATION.apply(data.unit_images()), data.sample_ids)
    return train_locally(
        model,
        state,
        ClientData("site-1", data, data, data, 4),
        made,
        settings=TrainingSettings(rounds=2, learning_rate=0.01, local_epochs=2),
        round=0,
        normalisation=NORMALISATION,
        loss_fn=F.cross_entropy,
        seed=0,
        explain=frozenset(data.sample_ids),
        kept={key: state[key] for key in withheld_names(model, policy)},
    )


PLACED = [
    (name, place)
    for name, kind in DEFENSES.items()
    for place in (kind.acts_on if "place" in type(kind.settings("paper")).model_fields else (None,))
]


@pytest.mark.parametrize(("name", "place"), PLACED)
@pytest.mark.parametrize("policy", ["stats", "none"])
def test_one_colour_image_of_three_classes(name: str, place: str | None, policy: SharedBatchNorm) -> None:
    options = QUICK.get(name, {}) | ({"place": place} if place else {})
    result = one_round(name, policy, options, "group" if name in ONE_BY_ONE else "batch")
    assert result.update.withheld == tuple(sorted(result.kept))
    assert bool(result.kept) == (name not in ONE_BY_ONE)
    assert all(torch.isfinite(tensor).all() for tensor in result.kept.values())


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name, place in PLACED if name not in ("none", "mixup", "instahide", "dp-sgd", "shadow", *MANY)],
)
def test_labels_that_are_probabilities(name: str, place: str | None) -> None:
    own = QUICK.get(name, {}) | ({"place": place} if place else {})
    result = one_round(f"mixup+{name}", "all", {"mixup": {"images": 2}, name: own})
    assert result.measurements["own_weight"] > 0


def test_probabilities_where_single_images_are_clipped() -> None:
    clipping = {"root_images": 3, "clip": True}
    one_round("mixup+grad-defense", "all", {"mixup": {"images": 2}, "grad-defense": clipping}, "group")


def test_a_mixture_of_mixtures_has_probabilities_again() -> None:
    result = one_round("mixup+instahide", "all", {"mixup": {"images": 2}, "instahide": {"images": 2}})
    assert 0 < result.measurements["instahide.own_weight"] < 1

"""Local training: plain SGD where nothing defends, and a defense at each of its three places."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, Defense, RoundContext
from shadow_defense.defenses.shadow import ShadowDefense
from shadow_defense.errors import DefenseError, ModelError, UpdateError
from shadow_defense.federated.client import LocalResult, batch_orders, train_locally
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings
from shadow_defense.seeds import named_generator
from shadow_defense.shadow.guard import ShadowGuard
from shadow_defense.shadow.sample_store import unpack_samples
from shadow_defense.shadow.settings import ShadowSettings

NORMALISATION = Normalisation((0.5,), (0.25,))


def image_set(count: int, side: int = 16, seed: int = 0) -> ImageSet:
    images = torch.randint(
        0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return ImageSet(images, torch.arange(count) % 2, tuple(f"{seed}/{index}" for index in range(count)))


def client(count: int = 5, batch_size: int = 2, name: str = "site-1", side: int = 16) -> ClientData:
    return ClientData(name, image_set(count, side), image_set(1, side, 1), image_set(1, side, 2), batch_size)


def build(normalisation: str = "batch", side: int = 16) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(side, side), seed=0)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(
    data: ClientData | None = None,
    defense: Defense | None = None,
    *,
    model: nn.Module | None = None,
    round: int = 0,
    seed: int = 0,
    explain: tuple[str, ...] = (),
    **settings: object,
) -> LocalResult:
    model = model or build()
    chosen = TrainingSettings(**{"learning_rate": 0.1, **settings})
    return train_locally(
        model,
        state_of(model),
        data or client(),
        defense or Defense(),
        settings=chosen,
        round=round,
        normalisation=NORMALISATION,
        loss_fn=chosen.loss_function(),
        seed=seed,
        explain=frozenset(explain),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"local_epochs": 3, "momentum": 0.9, "weight_decay": 0.01},
        {"batch_norm": "eval", "local_epochs": 2},
        {"optimiser": "adam", "betas": (0.5, 0.9), "weight_decay": 0.01, "local_epochs": 2},
        {"optimiser": "adamw", "weight_decay": 0.01, "epsilon": 1e-3, "loss": "bce"},
        {"optimiser": "rmsprop", "momentum": 0.5, "smoothing": 0.9, "loss": "mse", "local_epochs": 2},
    ],
)
def test_without_defense_it_is_torchs_own_training(settings: dict[str, object]) -> None:
    data, twin = client(), build()
    before = state_of(twin)
    chosen = TrainingSettings(**{"learning_rate": 0.1, **settings})
    shared = {"lr": 0.1, "weight_decay": chosen.weight_decay}
    adaptive = {**shared, "eps": chosen.epsilon}
    parameters = list(twin.parameters())
    optimiser = {
        "sgd": lambda: torch.optim.SGD(parameters, momentum=chosen.momentum, **shared),
        "adam": lambda: torch.optim.Adam(parameters, betas=chosen.betas, **adaptive),
        "adamw": lambda: torch.optim.AdamW(parameters, betas=chosen.betas, **adaptive),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, alpha=0.9, momentum=chosen.momentum, **adaptive),
    }[chosen.optimiser]()
    loss_fn = {"ce": nn.CrossEntropyLoss(), "bce": nn.BCEWithLogitsLoss(), "mse": nn.MSELoss()}[chosen.loss]
    twin.train(chosen.batch_norm == "train")
    images = (data.train.images.float() / 255 - 0.5) / 0.25
    losses = []
    orders = batch_orders(5, 2, chosen.local_epochs, named_generator(0, "order", "site-1", 0))
    for order in orders:
        optimiser.zero_grad()
        labels = data.train.labels[order]
        loss = loss_fn(twin(images[order]), labels if chosen.loss == "ce" else F.one_hot(labels, 2).float())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    result = train(data, **settings)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(result.update.tensors[name], tensor - before[name]), name
    assert result.loss == pytest.approx(sum(losses) / len(losses))
    assert (result.update.samples, result.update.steps) == (5, 3 * chosen.local_epochs)
    assert (result.update.round, result.update.client) == (0, "site-1")


def test_every_epoch_sees_every_image_once_in_a_fresh_order() -> None:
    orders = batch_orders(7, 3, 4, torch.Generator().manual_seed(0))
    assert [len(order) for order in orders] == [3, 3, 1] * 4
    epochs = [torch.cat(orders[start : start + 3]).tolist() for start in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


class Noting(Defense):
    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.contexts: list[RoundContext] = []

    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        self.batches.append(batch)
        self.contexts.append(context)
        return batch

    def order(self) -> list[str]:
        return [sample for batch in self.batches for sample in batch.sample_ids]


def test_orders_of_clients_rounds_and_seeds_are_independent() -> None:
    def order(**changes: object) -> tuple[str, ...]:
        defense = Noting()
        name = str(changes.pop("name", "site-1"))
        train(client(8, 4, name), defense, **changes)
        return tuple(defense.order())

    assert order() == order()
    assert len({order(), order(round=1), order(seed=1), order(name="site-2")}) == 4


def test_a_defense_is_told_the_truth() -> None:
    data, model, defense = client(), build(), Noting()
    before = state_of(model)
    train(data, defense, model=model, round=45, rounds=100)
    images = NORMALISATION.apply(data.train.unit_images())
    for batch in defense.batches:
        indices = [data.train.sample_ids.index(sample) for sample in batch.sample_ids]
        assert torch.equal(batch.images, images[indices])
        assert torch.equal(batch.labels, data.train.labels[indices])
    context = defense.contexts[-1]
    assert context.model is model
    assert (context.round, context.rounds) == (45, 100)
    assert context.learning_rate == pytest.approx(0.01)
    assert all(torch.equal(context.global_state[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(("round", "expected"), [(0, 1), (39, 1), (40, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)])
def test_learning_rate_falls_at_the_milestones(round: int, expected: float) -> None:
    """In the update itself: one step from the same state is as long as the learning rate."""
    assert TrainingSettings(learning_rate=0.1).learning_rate_at(round) == pytest.approx(0.1 * expected)
    one = client(2, 2)
    first, later = train(one), train(one, round=round)
    name = "classifier.weight"
    ratio = later.update.tensors[name].norm() / first.update.tensors[name].norm()
    assert ratio.item() == pytest.approx(expected, rel=1e-3)


def test_a_batch_of_one() -> None:
    assert train(client(1, 1)).update.steps == 1
    # Five images in batches of two leave one over.
    assert train(client(5, 2)).update.steps == 3


def shadow_defense(**settings: object) -> ShadowDefense:
    generator = DCGANGenerator(image_size=16, channels=1, z_dim=4, width=4)
    chosen = ShadowSettings(**{"latent_iterations": 2, "attack_iterations": 1, **settings})
    return ShadowDefense(ShadowGuard(generator, chosen, mean=(0.5,), std=(0.25,)))


@pytest.mark.parametrize("defended", [False, True])
def test_batch_norm_on_one_value_is_explained(defended: bool) -> None:
    """8 px end at one; also when the defense is the first to run the model."""
    defense = shadow_defense() if defended else Defense()
    with pytest.raises(ModelError, match="batch of one") as raised:
        train(client(1, 1, side=8), defense, model=build(side=8))
    assert "\n" not in str(raised.value)
    assert train(client(1, 1, side=8), shadow_defense(), model=build("group", side=8)).update.steps == 1


class AtEachPlace(Defense):
    def protect_batch(self, batch: Batch, context: RoundContext) -> Batch:
        return replace(batch, images=torch.zeros_like(batch.images))

    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        assert batch.images.abs().max() == 0
        return {name: torch.ones_like(gradient) for name, gradient in gradients.items()}

    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        return {**tensors, "classifier.bias": torch.full_like(tensors["classifier.bias"], 7.0)}

    def measurements(self) -> dict[str, float]:
        return {"told": 1.0}


def test_a_defense_acts_at_its_three_places() -> None:
    result = train(client(2, 2), AtEachPlace())
    assert result.update.tensors["classifier.bias"].tolist() == [7.0, 7.0]
    weight = result.update.tensors["classifier.weight"]
    torch.testing.assert_close(weight, torch.full_like(weight, -0.1), rtol=0, atol=1e-6)
    # A batch of zeros has no mean and no variance: only the decay of the running buffers is left.
    assert result.update.tensors["features.norm0.running_mean"].abs().max() == 0
    assert result.measurements == {"told": 1.0}


class Refusing(Defense):
    def protect_gradients(
        self, gradients: Mapping[str, Tensor], batch: Batch, context: RoundContext
    ) -> Mapping[str, Tensor]:
        raise DefenseError("cannot protect")


class Dropping(Defense):
    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name != "classifier.bias"}


class Poisoning(Defense):
    def protect_update(self, tensors: Mapping[str, Tensor], context: RoundContext) -> Mapping[str, Tensor]:
        return {name: tensor * float("nan") for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("defense", "error", "message"),
    [
        (Refusing(), DefenseError, "cannot protect"),
        (Dropping(), UpdateError, "lacks tensor 'classifier.bias'"),
        (Poisoning(), UpdateError, "NaN"),
    ],
)
def test_no_update_where_the_defense_fails(defense: Defense, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(defense=defense)


def test_the_callers_random_state_and_the_global_state_are_left_alone() -> None:
    model = build()
    model.features.add_module("dropout", nn.Dropout(0.5))
    before, random_state = state_of(model), torch.get_rng_state()
    given_state = copy.deepcopy(before)

    def once() -> dict[str, Tensor]:
        result = train_locally(
            model,
            given_state,
            client(),
            Defense(),
            settings=TrainingSettings(),
            round=0,
            normalisation=NORMALISATION,
            loss_fn=F.cross_entropy,
            seed=0,
        )
        return dict(result.update.tensors)

    first = once()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(given_state[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    # Dropout's draws are named by client and round: the round can be computed again.
    torch.rand(3)
    assert all(torch.equal(tensor, first[name]) for name, tensor in once().items())


class DrawingDefense(Defense):
    """Runs layers that draw from the global state before the first step, as a scan of a model with dropout would."""

    def begin_round(self, context: RoundContext) -> None:
        self.drawn = torch.randn(3)


def test_what_is_drawn_before_the_first_step_is_seeded_and_shifts_nothing() -> None:
    defense, drawn = DrawingDefense(), []
    for state, round in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        result = train(defense=defense, round=round)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(defense.drawn)
        for name, tensor in train(round=round).update.tensors.items():
            assert torch.equal(tensor, result.update.tensors[name])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_accelerators_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their random state is not put back afterwards."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    train()
    assert seeded == []


@pytest.mark.slow
def test_shadow_defense_as_a_defense() -> None:
    plain = train()
    defense = shadow_defense()
    protected = train(defense=defense, explain=client().train.sample_ids)
    name = "classifier.weight"
    assert not torch.equal(plain.update.tensors[name], protected.update.tensors[name])
    assert protected.measurements["noise_rms"] > 0
    assert protected.measurements["noise_peak"] >= protected.measurements["noise_rms"]
    explained = protected.explanations
    assert set(explained) == {
        f"{picture}::{part}"
        for picture in ("protected", "noise", "noise_map", "cam", "rebuilt")
        for part in ("names", "values")
    }
    assert explained["noise::values"].shape == (5, 1, 16, 16)
    rms = explained["noise::values"].square().mean().sqrt().item()
    assert protected.measurements["noise_rms"] == pytest.approx(rms, rel=1e-4)
    assert train(defense=shadow_defense(strength=0.0)).update.tensors[name].equal(plain.update.tensors[name])
    # Measurements are of one round: they start again with the next.
    assert train(defense=defense, round=1).measurements["noise_rms"] != protected.measurements["noise_rms"]
    assert train(defense=defense).explanations == {}


def test_only_the_samples_asked_for_are_explained() -> None:
    defense, wanted = shadow_defense(), ("0/4", "0/1")
    explained = train(defense=defense, explain=wanted).explanations
    noise = unpack_samples({part: explained[f"noise::{part}"] for part in ("names", "values")})
    assert set(noise) == set(wanted)
    assert set(unpack_samples({part: explained[f"cam::{part}"] for part in ("names", "values")})) == set(wanted)
    for sample in wanted:
        # N3 of the sample is what the guard keeps under its name.
        maps = unpack_samples({part: explained[f"noise_map::{part}"] for part in ("names", "values")})
        assert torch.equal(maps[sample], defense.guard.noise_maps[sample])

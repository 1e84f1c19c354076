"""Step 4: every term of the loss, and that each of them really moves the generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.models.batchnorm import BatchStatistics, BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, split_state
from shadow_defense.models.image_priors import frobenius_variation
from shadow_defense.models.settings import ModelSettings
from shadow_defense.shadow.pseudo_attack import ShadowLoss, ShadowWeights, learning_rate_for, pseudo_attack, shadow_loss
from shadow_defense.shadow.victim import VictimSignals, victim_signals

NOTHING = ShadowWeights(0, 0, 0, 0, 0)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(normalisation: str = "batch", seed: int = 0) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(8, 8), seed=seed)


def test_variation_by_hand() -> None:
    """[[1, 2], [4, 8]]: right (1, 4), down (3, 6), one diagonal 7, the other 2 - 4."""
    image = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)
    assert float(frobenius_variation(image)) == pytest.approx(17**0.5 + 45**0.5 + 7 + 2)


def test_terms_by_hand() -> None:
    fake, real = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 1.0)
    # Un-squared norms, layer by layer: 5 + 2, not the norm of all.
    gradients = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([2.0])}
    target = {name: torch.zeros_like(tensor) for name, tensor in gradients.items()}
    ours = {"n": BatchStatistics(torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]), 8)}
    theirs = {"n": BatchStatistics(torch.zeros(2), torch.zeros(2), 8)}
    loss = shadow_loss(fake, real, gradients, VictimSignals(target, theirs), ours)
    assert loss.gradient.item() == pytest.approx(1e-2 * 7)
    assert loss.batch_norm.item() == pytest.approx(1e-2 * 15)
    assert loss.total_variation.item() == 0
    assert loss.norm.item() == pytest.approx(1e2 * (8 * 9) ** 0.5 / 16)
    assert loss.reconstruction.item() == pytest.approx(4)
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss[1:]), rel=1e-6)


def losses_at(model: nn.Module, victim: VictimSignals, labels: Tensor, real: Tensor) -> Callable[[Tensor], ShadowLoss]:
    parameters, buffers = split_state(model, model)

    def loss(fake: Tensor) -> ShadowLoss:
        with BatchStatisticsRecorder(model) as recorder:
            gradients = loss_gradients(model, parameters, buffers, fake, labels, F.cross_entropy, create_graph=True)
            return shadow_loss(fake, real, gradients, victim, recorder.take())

    return loss


@pytest.mark.parametrize("term", ShadowLoss._fields)
def test_derivative_of_every_term_against_finite_differences(term: str) -> None:
    """With respect to the fake images, at the global model in eval mode, as the pseudo attack takes it."""
    model = build().double()
    real, fake, direction = (drawn(2, 1, 8, 8, seed=seed, dtype=torch.float64) for seed in (0, 1, 2))
    labels = torch.tensor([0, 1])
    victim = victim_signals(model, real, labels, F.cross_entropy)
    loss = losses_at(model.eval(), victim, labels, real)
    leaf = fake.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(loss(leaf), term), leaf)
    step = 1e-6
    numeric = (getattr(loss(fake + step * direction), term) - getattr(loss(fake - step * direction), term)) / (2 * step)
    assert abs(float(numeric.detach())) > 1e-9
    torch.testing.assert_close((gradient * direction).sum(), numeric.detach(), rtol=1e-5, atol=0)


def attack(weights: ShadowWeights, *, normalisation: str = "batch", iterations: int = 20) -> tuple[Tensor, list[float]]:
    """How far the generator moved, and the losses; the generator is a linear layer in front of a tanh."""
    model, images, labels = build(normalisation), drawn(2, 1, 8, 8), torch.tensor([0, 1])
    victim = victim_signals(model, images, labels, F.cross_entropy)
    synthesis = {"weight": 0.3 * drawn(4, 64, seed=1)}

    def render(parameters: Mapping[str, Tensor], z: Tensor) -> Tensor:
        return torch.tanh(z @ parameters["weight"]).view(-1, 1, 8, 8)

    tuned, losses, _ = pseudo_attack(
        render,
        synthesis,
        drawn(2, 4, seed=2),
        images,
        labels,
        victim,
        model=model,
        global_state=model,
        loss_fn=F.cross_entropy,
        iterations=iterations,
        learning_rate=1e-2,
        weights=weights,
    )
    return tuned["weight"] - synthesis["weight"], losses


@pytest.mark.parametrize("term", ShadowWeights._fields)
def test_every_term_alone_moves_the_generator(term: str) -> None:
    """The gradient term most of all: read from a state dict, as in the authors' attack, it moves nothing."""
    moved, losses = attack(NOTHING._replace(**{term: 1.0}))
    assert moved.abs().max() > 1e-3
    assert losses[-1] < losses[0]


def test_no_term_no_movement() -> None:
    moved, losses = attack(NOTHING)
    assert moved.abs().max() == 0
    assert losses == [0.0] * 20


def test_gradient_term_aims_at_the_clients_gradient() -> None:
    """A model whose own gradient is the target: images rendered at the truth have no gradient mismatch."""
    model, labels = build("group").eval(), torch.tensor([0, 1])
    images = drawn(2, 1, 8, 8)
    victim = victim_signals(model, images, labels, F.cross_entropy)
    loss = losses_at(model, victim, labels, images)
    other = loss(drawn(2, 1, 8, 8, seed=3)).gradient.item()
    assert loss(images).gradient.item() < 1e-5 * other


def test_everything_given_is_left_alone() -> None:
    model, images, labels = build(), drawn(2, 1, 8, 8), torch.tensor([0, 1])
    state = copy.deepcopy(model.state_dict())
    synthesis = {"weight": drawn(4, 64, seed=1)}
    before = synthesis["weight"].clone()
    victim = victim_signals(model, images, labels, F.cross_entropy)
    pseudo_attack(
        lambda parameters, z: torch.tanh(z @ parameters["weight"]).view(-1, 1, 8, 8),
        synthesis,
        drawn(2, 4),
        images,
        labels,
        victim,
        model=model,
        global_state=model.state_dict(),
        loss_fn=F.cross_entropy,
    )
    assert torch.equal(synthesis["weight"], before) and synthesis["weight"].grad is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gradients_are_taken_at_the_global_model() -> None:
    model, other = build(), build(seed=1)
    images, labels = drawn(2, 1, 8, 8), torch.tensor([0, 1])
    victim = victim_signals(model, images, labels, F.cross_entropy)

    def first_loss(local: nn.Module, global_state: nn.Module | Mapping[str, Tensor]) -> float:
        _, losses, _ = pseudo_attack(
            lambda parameters, z: torch.tanh(z @ parameters["weight"]).view(-1, 1, 8, 8),
            {"weight": drawn(4, 64, seed=1)},
            drawn(2, 4),
            images,
            labels,
            victim,
            model=local,
            global_state=global_state,
            loss_fn=F.cross_entropy,
            iterations=1,
        )
        return losses[0]

    expected = first_loss(other, other)
    assert first_loss(model, other) == expected
    assert first_loss(model, other.state_dict()) == expected
    assert first_loss(model, model) != expected


def test_gradients_are_taken_in_eval_mode() -> None:
    """The first loss is the mismatch of a plain backward pass in eval mode, whatever mode the client trains in."""
    _, losses = attack(NOTHING._replace(gradient=1.0), iterations=1)
    model, images, labels = build(), drawn(2, 1, 8, 8), torch.tensor([0, 1])
    victim = victim_signals(model, images, labels, F.cross_entropy)
    fake = torch.tanh(drawn(2, 4, seed=2) @ (0.3 * drawn(4, 64, seed=1))).view(-1, 1, 8, 8)

    def mismatch(training: bool) -> float:
        twin = copy.deepcopy(model).train(training)
        F.cross_entropy(twin(fake), labels).backward()
        return sum(float((p.grad - victim.gradients[name]).norm()) for name, p in twin.named_parameters())

    assert losses[0] == pytest.approx(mismatch(False), rel=1e-4)
    assert losses[0] != pytest.approx(mismatch(True), rel=1e-2)


def test_learning_rates_of_the_paper() -> None:
    assert [learning_rate_for(size) for size in (1, 2, 4, 8)] == pytest.approx([1e-4, 5e-4, 1e-3, 2e-3])

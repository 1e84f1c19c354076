"""The medical attack's two modes: the released matching term has no gradient, ours has."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import SIDE, normalisation, observation, private
from torch import Tensor, nn

from shadow_defense.attacks.gradinversion import GradInversion
from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import layer_distance
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.released_gradinversion import one_pass_statistics, released_matching, train_on
from shadow_defense.attacks.target import matching_target
from shadow_defense.federated.optimiser import OptimiserName
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.settings import ModelSettings


def model(kind: str = "batch") -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=kind, width=8)
    return build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)


def seen(kind: str = "batch", *, epochs: int = 1) -> Observation:
    return observation(model(kind), epochs=epochs)[0]


RELEASED = GradInversion(mode="released", iterations=4, batch_norm=0.1)


def test_the_released_matching_term_has_no_gradient_and_ours_has() -> None:
    observed = seen()
    target = matching_target(observed, longest_unroll=4)
    images = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    soft = F.one_hot(target.labels, 2).float().requires_grad_()
    step = train_on(observed.model, target.parameters, target.buffers, images, soft, 0.1)
    theirs = released_matching(step.parameters, target.parameters, target.sent, target.observed)
    assert not theirs.requires_grad and theirs > 0
    # What their code leaves on the image instead: the gradient of the task loss.
    assert step.on_images.norm() > 0

    with BatchStatisticsRecorder(observed.model) as recorder:
        simulated = simulate_training(
            observed.model,
            target.parameters,
            target.buffers,
            images,
            target.labels,
            observed.loss_fn,
            target.local,
            recorder,
            target.sent,
        )
    ours = layer_distance(simulated.update, target.observed)
    (gradient,) = torch.autograd.grad(ours, images)
    assert gradient.norm() > 0


def test_the_weight_of_the_released_matching_term_changes_nothing_but_the_printed_loss() -> None:
    weak, strong = (
        RELEASED.model_copy(update={"matching_weight": weight}).reconstruct(seen(), seed=0) for weight in (0.0, 1e3)
    )
    assert torch.equal(weak.images, strong.images)
    assert weak.history[0] < strong.history[0]
    ours = [
        GradInversion(iterations=4, matching_weight=weight).reconstruct(seen(), seed=0).images for weight in (0.0, 1e3)
    ]
    assert not torch.equal(*ours)


@pytest.mark.parametrize(("optimiser", "said"), [("sgd", False), ("adam", True)])
def test_that_it_takes_any_step_for_one_of_sgd_is_said(optimiser: OptimiserName, said: bool) -> None:
    training = TrainingSettings(learning_rate=0.001, optimiser=optimiser)
    observed = observation(model("group"), training=training)[0]
    notes = RELEASED.model_copy(update={"iterations": 1}).reconstruct(observed, seed=0).notes
    assert any("taken for SGD, as the released code does" in note for note in notes) is said


def test_one_step_by_hand() -> None:
    """A plain optimiser on a copy of the model, and what backward leaves on the image."""
    network = model()
    images = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    parameters = dict(network.named_parameters())
    buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
    step = train_on(network, parameters, buffers, images, labels, 0.5)

    copied = copy.deepcopy(network)
    optimiser = torch.optim.SGD(copied.parameters(), lr=0.5)
    ours, targets = images.detach().clone().requires_grad_(), labels.detach().clone().requires_grad_()
    nn.BCEWithLogitsLoss()(copied(ours), targets.sigmoid()).backward()
    optimiser.step()
    for name, tensor in copied.named_parameters():
        torch.testing.assert_close(step.parameters[name], tensor.detach())
    assert ours.grad is not None and targets.grad is not None
    torch.testing.assert_close(step.on_images, ours.grad)
    torch.testing.assert_close(step.on_labels, targets.grad)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_statistics_are_those_of_a_single_pass(epochs: int) -> None:
    """Exact for one step, but for the unbiased variance; wrong for three: published, and left so."""
    observed = seen(epochs=epochs)
    found = one_pass_statistics(observed)
    images = normalisation().apply(private())
    network = observed.model
    network.load_state_dict(dict(observed.global_state))
    with BatchStatisticsRecorder(network) as recorder:
        network(images)
        true = recorder.take()
    first = next(iter(true))
    scale = true[first].size / (true[first].size - 1)
    exact = [
        torch.allclose(found[first].mean, true[first].mean, rtol=1e-3, atol=1e-4),
        torch.allclose(found[first].variance, scale * true[first].variance, rtol=1e-3, atol=1e-4),
    ]
    assert exact == [epochs == 1] * 2


def test_images_are_stretched_and_labels_start_at_the_truth() -> None:
    found = RELEASED.reconstruct(seen(), seed=0)
    assert found.images.min() == 0 and found.images.max() == 1
    assert found.labels.tolist() == [1]
    assert any("released" in note for note in found.notes)
    assert torch.equal(found.images, RELEASED.reconstruct(seen(), seed=0).images)


def test_the_statistics_pull_the_image() -> None:
    """Of the client's update nothing but its buffers and the trained weights behind them acts on the image."""
    without, with_them = (
        RELEASED.model_copy(update={"batch_norm": weight}).reconstruct(seen(), seed=0).images for weight in (0.0, 0.1)
    )
    assert not torch.equal(without, with_them)
    no_statistics = RELEASED.reconstruct(seen("group"), seed=0)
    assert any("no batch-norm statistics" in note for note in no_statistics.notes)


def test_without_granted_labels_they_start_at_random_and_the_observation_is_left_alone() -> None:
    observed, _ = observation(model(), threat="honest-but-curious server")
    state = {name: tensor.clone() for name, tensor in observed.global_state.items()}
    own: dict[str, Tensor] = {name: tensor.clone() for name, tensor in observed.model.state_dict().items()}
    first = RELEASED.reconstruct(observed, seed=0)
    assert all(torch.equal(tensor, observed.global_state[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, observed.model.state_dict()[name]) for name, tensor in own.items())
    assert not any(module._forward_pre_hooks for module in observed.model.modules())
    # The truth is not read: another label in the observation that is not granted would raise.
    assert torch.equal(first.images, RELEASED.reconstruct(replace(observed, _labels=None), seed=0).images)

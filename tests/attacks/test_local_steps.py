"""The simulated training is the client's training: the same update and the same statistics, step for step."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.attacks.local_steps import as_single_step, simulate_training
from shadow_defense.attacks.priors import average_statistics
from shadow_defense.data.dataset import ClientData, ImageSet, Normalisation
from shadow_defense.defenses.base import Defense
from shadow_defense.federated.client import train_locally
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.federated.settings import TrainingSettings
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.models.batchnorm import BatchStatisticsRecorder, recover_batch_statistics, step_weights
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import split_state
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.variational_bottleneck import insert_bottleneck

NORMALISATION = Normalisation((0.5,), (0.25,))


def build(normalisation: str = "batch") -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=8, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(16, 16), seed=0)


def image_set(count: int) -> ImageSet:
    drawn = torch.randint(0, 256, (count, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(drawn, torch.arange(count) % 2, tuple(map(str, range(count))))


def trained(normalisation: str = "batch", **settings: object) -> tuple[dict[str, Tensor], ModelUpdate, ImageSet]:
    """The state before, what the client really sends, and its images; all of them in every batch."""
    model, data = build(normalisation), image_set(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = train_locally(
        model,
        before,
        ClientData("c", data, data, data, batch_size=8),
        Defense(),
        settings=TrainingSettings(**settings),
        round=0,
        normalisation=NORMALISATION,
        loss_fn=F.cross_entropy,
        seed=0,
    )
    return before, result.update, data


def simulated(
    state: Mapping[str, Tensor], data: ImageSet, local: LocalTraining, normalisation: str = "batch"
) -> tuple[dict[str, Tensor], list[dict], nn.Module]:
    model = build(normalisation).train(local.batch_norm == "train")
    parameters, buffers = split_state(model, state)
    with BatchStatisticsRecorder(model) as recorder:
        images = NORMALISATION.apply(data.unit_images())
        result = simulate_training(model, parameters, buffers, images, data.labels, F.cross_entropy, local, recorder)
    return dict(zip(parameters, result.update, strict=True)), result.statistics, model


def relative_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    difference = sum((ours[name].detach() - theirs[name]).square().sum() for name in ours)
    return float((difference / sum(theirs[name].square().sum() for name in ours)).sqrt())


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("batch_norm", ["train", "eval"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.05)])
def test_equals_what_the_client_sends(epochs: int, batch_norm: str, momentum: float, weight_decay: float) -> None:
    chosen = {"learning_rate": 0.1, "momentum": momentum, "weight_decay": weight_decay, "batch_norm": batch_norm}
    before, update, data = trained(local_epochs=epochs, **chosen)
    local = LocalTraining(0.1, 8, update.steps, batch_norm, momentum, weight_decay)
    ours, _, _ = simulated(before, data, local)
    assert update.steps == epochs
    assert relative_error(ours, update.tensors) < 1e-4
    if epochs > 1:
        # Not because nothing depends on it: one average step is far off, and so is every forgotten setting.
        assert relative_error(simulated(before, data, as_single_step(local))[0], update.tensors) > 0.02
        if momentum:
            forgotten = LocalTraining(0.1, 8, epochs, batch_norm, 0.0, weight_decay)
            assert relative_error(simulated(before, data, forgotten)[0], update.tensors) > 0.02
            forgotten = LocalTraining(0.1, 8, epochs, batch_norm, momentum, 0.0)
            assert relative_error(simulated(before, data, forgotten)[0], update.tensors) > 1e-3


def test_one_average_step_is_one_step_of_the_whole_length() -> None:
    local = as_single_step(LocalTraining(0.1, 4, 6, "eval", 0.0, 0.01))
    assert (local.learning_rate, local.steps, local.batch_size) == (pytest.approx(0.6), 1, 4)
    assert (local.batch_norm, local.weight_decay) == ("eval", 0.01)


@pytest.mark.parametrize("epochs", [1, 3])
def test_statistics_equal_those_in_the_buffers_that_are_sent(epochs: int) -> None:
    before, update, data = trained(local_epochs=epochs, learning_rate=0.1)
    _, statistics, model = simulated(before, data, LocalTraining(0.1, 8, epochs))
    assert len(statistics) == epochs
    after = {name: tensor + update.tensors[name] for name, tensor in before.items()}
    sizes = {name: each.size for name, each in statistics[0].items()}
    recovered = recover_batch_statistics(model, before, after, sizes, epochs)
    ours = average_statistics(statistics, step_weights(0.1, epochs))
    assert ours.keys() == recovered.keys() and len(ours) == 5
    for name, each in recovered.items():
        torch.testing.assert_close(ours[name].mean.detach(), each.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours[name].variance.detach(), each.variance, rtol=1e-3, atol=1e-4)


def test_batches_are_consecutive_slices_again_and_again() -> None:
    """Three images in batches of two for three steps: 0 and 1, 2, 0 and 1; written out with plain SGD."""
    model, data = build("group"), image_set(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = NORMALISATION.apply(data.unit_images())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in ([0, 1], [2], [0, 1]):
        optimiser.zero_grad()
        F.cross_entropy(model(images[batch]), data.labels[batch]).backward()
        optimiser.step()
    expected = {name: tensor - before[name] for name, tensor in model.state_dict().items()}
    ours, _, _ = simulated(before, data, LocalTraining(0.1, 2, 3), "group")
    assert relative_error(ours, expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 2])
def test_a_penalty_that_is_part_of_a_layer_is_simulated_as_the_client_adds_it(steps: int) -> None:
    """PRECODE's divergence joins the gradient, however large the loss is: written out with plain SGD."""
    model = insert_bottleneck(build("group"), width=4, weight=1.0, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1])
    torch.manual_seed(1)
    with BatchStatisticsRecorder(model) as recorder:
        found = simulate_training(
            model, *split_state(model, before), images, labels, F.cross_entropy, LocalTraining(0.1, 2, steps), recorder
        )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    parameters = dict(model.named_parameters())
    expected = {name: (tensor - before[name]).detach() for name, tensor in parameters.items()}
    ours = {name: tensor.detach() for name, tensor in zip(parameters, found.update, strict=True)}
    assert relative_error(ours, expected) < 1e-4


def test_the_global_parameters_are_left_alone() -> None:
    model = build()
    parameters, buffers = split_state(model, model)
    kept = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with BatchStatisticsRecorder(model) as recorder:
        for _ in range(2):
            simulate_training(
                model,
                parameters,
                buffers,
                images,
                torch.tensor([0, 1]),
                F.cross_entropy,
                LocalTraining(0.1, 2, 2),
                recorder,
            )
    assert all(torch.equal(parameters[name], tensor) for name, tensor in kept.items())
    assert images.grad is None and all(tensor.grad is None for tensor in parameters.values())
    assert all(parameter.grad is None for parameter in model.parameters())

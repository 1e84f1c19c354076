"""The difference of two passes against autograd's own second derivative, in double precision."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import LossFunction, loss_gradients, split_state
from shadow_defense.models.kinks import RecordedKinks, ReplayedKinks
from shadow_defense.models.losses import ClassLoss
from shadow_defense.models.settings import ModelSettings
from shadow_defense.models.simulated_gradient import NO_DIFFERENCE, SimulatedGradient, channels_last
from shadow_defense.models.update_losses import DistanceFromDirection

SIDE = 16
LABELS = torch.tensor([0, 2])


def convnet(normalisation: str, activation: str = "relu") -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, activation=activation, width=8)
    return build_model(chosen, channels=1, classes=3, image_size=(SIDE, SIDE), seed=0)


def pooled(*activations: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    first, second = activations
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), first, nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.Conv2d(8, 8, 3, padding=1), second, nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 3)),
    )


class Rippled(nn.Module):
    """So finely that no step is small enough: what no difference comes near."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(3e5 * x) / 3e5


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_()


def distance(gradients: dict[str, Tensor]) -> Tensor:
    """A loss with a different direction for every parameter; those whose names end in bias it does not read."""
    draws = torch.Generator().manual_seed(2)
    read = [gradient for name, gradient in gradients.items() if not name.endswith("bias")]
    targets = [torch.randn(each.shape, generator=draws, dtype=torch.float64).to(each) for each in read]
    return torch.stack(
        [F.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(read, targets, strict=True)]
    ).sum()


def by_difference(model: nn.Module, loss_fn: LossFunction = F.cross_entropy) -> tuple[Tensor, tuple[str, ...]]:
    """The second derivative that is taken, by the same object twice: with the check at the start, and without."""
    parameters, buffers = split_state(model, model)
    parameters = {name: channels_last(tensor) for name, tensor in parameters.items()}
    gradient = SimulatedGradient(model, parameters, buffers, loss_fn, BatchStatisticsRecorder(model))
    found = []
    for _ in range(2):
        leaf = images()
        torch.manual_seed(3)
        found.append(torch.autograd.grad(distance(gradient(leaf, LABELS)[0]), leaf)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    return found[0], gradient.notes


def exactly(model: nn.Module, loss_fn: LossFunction = F.cross_entropy) -> Tensor:
    model = model.double()
    parameters, buffers = split_state(model, model)
    leaf = images(torch.float64)
    torch.manual_seed(3)
    gradients = loss_gradients(model, parameters, buffers, leaf, LABELS, loss_fn, create_graph=True)
    return torch.autograd.grad(distance(gradients), leaf)[0]


@pytest.mark.parametrize(
    ("model", "loss_fn"),
    [
        (convnet("group", "gelu"), ClassLoss("ce", label_smoothing=0.1)),
        (convnet("none"), F.cross_entropy),
        (convnet("batch"), F.cross_entropy),
        (convnet("batch").eval(), F.cross_entropy),
        (pooled(nn.ReLU(inplace=True), nn.LeakyReLU(0.2)), F.cross_entropy),
        (pooled(nn.LeakyReLU(0.1, inplace=True), nn.Sigmoid()), ClassLoss("mse")),
    ],
    ids=["gelu, group norm, smoothed labels", "relu", "batch norm", "eval", "pooling", "leaky, pooling"],
)
def test_the_difference_is_the_derivative(model: nn.Module, loss_fn: LossFunction) -> None:
    found, notes = by_difference(model, loss_fn)
    expected = exactly(model, loss_fn).float()
    assert F.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.9998
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-2, atol=0)
    assert notes == ()


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    model = nn.Sequential(convnet("none", "gelu").features, nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))
    parameters, buffers = split_state(model, model)
    gradient = SimulatedGradient(model, parameters, buffers, F.cross_entropy, BatchStatisticsRecorder(model))
    leaf, found = images(), {}
    torch.manual_seed(4)
    found["difference"] = torch.autograd.grad(distance(gradient(leaf, LABELS)[0]), leaf)[0]
    after = torch.rand(())
    torch.manual_seed(4)
    plain = loss_gradients(model, parameters, buffers, leaf, LABELS, F.cross_entropy, create_graph=True)
    found["exact"] = torch.autograd.grad(distance(plain), leaf)[0]
    assert after == torch.rand(()), "the second pass leaves the random state where the first one left it"
    assert F.cosine_similarity(*(each.flatten() for each in found.values()), 0) > 0.9998
    assert not gradient.notes


def test_where_no_difference_comes_near_the_derivative_is_exact_and_it_is_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), Rippled(), nn.Linear(8, 3))
    found, notes = by_difference(model)
    assert notes == (NO_DIFFERENCE,)
    parameters, buffers = split_state(model, model)
    leaf = images()
    plain = loss_gradients(model, parameters, buffers, leaf, LABELS, F.cross_entropy, create_graph=True)
    assert torch.equal(found, torch.autograd.grad(distance(plain), leaf)[0])


def test_in_double_precision_the_derivative_is_exact_from_the_start() -> None:
    model = convnet("none", "gelu").double()
    parameters, buffers = split_state(model, model)
    gradient = SimulatedGradient(model, parameters, buffers, F.cross_entropy, BatchStatisticsRecorder(model))
    leaf = images(torch.float64)
    assert gradient.exact
    assert torch.equal(torch.autograd.grad(distance(gradient(leaf, LABELS)[0]), leaf)[0], exactly(model))


def test_a_pass_is_freed_with_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collector of circles, which does not see those through autograd: attacks take thousands of passes."""
    model = convnet("group", "gelu")
    parameters, buffers = split_state(model, model)
    kept, pass_at = list[weakref.ref[object]](), SimulatedGradient.first_pass

    def watched(*given: Tensor) -> object:
        first = pass_at(*given)
        kept.append(weakref.ref(first))
        return first

    monkeypatch.setattr(SimulatedGradient, "first_pass", watched)
    at = images()
    with BatchStatisticsRecorder(model) as recorder:
        gradient = SimulatedGradient(model, parameters, buffers, F.cross_entropy, recorder)
        for _ in range(3):
            torch.autograd.grad(distance(gradient(at, LABELS)[0]), at)
    assert [each() for each in kept] == [None, None, None]


def test_statistics_are_on_the_graph_and_buffers_move_once() -> None:
    model = convnet("batch")
    parameters, buffers = split_state(model, model)
    expected_parameters, expected_buffers = split_state(model, model)
    found = {}
    with BatchStatisticsRecorder(model) as recorder:
        gradient = SimulatedGradient(model, parameters, buffers, F.cross_entropy, recorder)
        for method in ("difference", "exact"):
            leaf = images()
            if method == "exact":
                given = (model, expected_parameters, expected_buffers, leaf, LABELS, F.cross_entropy)
                gradients, statistics = loss_gradients(*given, create_graph=True), recorder.take()
            else:
                gradients, statistics = gradient(leaf, LABELS)
            alone = torch.stack([each.variance.sum() + each.mean.square().sum() for each in statistics.values()]).sum()
            found[method] = torch.autograd.grad(distance(gradients) + alone, leaf)[0].flatten()
    assert F.cosine_similarity(found["difference"], found["exact"], 0) > 0.9998
    for name, tensor in expected_buffers.items():
        torch.testing.assert_close(buffers[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", [convnet("none"), convnet("group", "gelu")], ids=["relu", "gelu, group norm"])
def test_a_loss_of_the_gradient_is_differentiated_by_its_numbers(model: nn.Module, dtype: torch.dtype) -> None:
    """Against autograd's double backward pass through the cosine of all tensors in one line."""
    model = copy.deepcopy(model).to(dtype)
    parameters, buffers = split_state(model, model)
    parameters = {name: channels_last(tensor) for name, tensor in parameters.items()}
    direction = torch.randn(sum(map(torch.numel, parameters.values())), generator=torch.Generator().manual_seed(5))
    direction = (direction / direction.norm()).to(dtype)
    parts = direction.split([tensor.numel() for tensor in parameters.values()])
    laid = [channels_last(part.view_as(tensor)) for part, tensor in zip(parts, parameters.values(), strict=True)]
    gradient = SimulatedGradient(model, parameters, buffers, F.cross_entropy, BatchStatisticsRecorder(model))
    leaf = images(dtype)
    plain = loss_gradients(model, parameters, buffers, leaf, LABELS, F.cross_entropy, create_graph=True)
    line = torch.cat([each.flatten() for each in plain.values()])
    expected = 1 - F.cosine_similarity(line, direction, 0)
    slope = torch.autograd.grad(expected, leaf)[0].flatten()
    # The first derivative is checked against the exact one, the second is not; both are the same.
    taken = list[Tensor]()
    for _ in range(2):
        value, _ = gradient.loss(leaf, LABELS, DistanceFromDirection(laid))
        (found,) = torch.autograd.grad(3 * value, leaf)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-5)
        assert F.cosine_similarity(found.flatten(), slope, 0) > 0.9995
        torch.testing.assert_close(found.norm(), 3 * slope.norm(), rtol=1e-2, atol=0)
        taken.append(found)
    assert torch.equal(*taken)
    assert gradient.method == ("difference" if dtype == torch.float32 else "exact")


def test_the_length_of_a_loss_derivative_is_that_of_its_tensors() -> None:
    draws = torch.Generator().manual_seed(6)
    update = [torch.randn(shape, generator=draws) for shape in ((3, 2, 2, 2), (5,))]
    line = torch.randn(29, generator=draws)
    first, second = (line / line.norm()).split([24, 5])
    direction = [first.view(3, 2, 2, 2), second]
    _, slope = DistanceFromDirection(direction)(update)
    mixed = [b * (c + a * g) for g, a, c, b in zip(update, slope.own, direction, slope.scale, strict=True)]
    torch.testing.assert_close(slope.length, torch.cat([each.flatten() for each in mixed]).norm())
    # At the direction itself nothing is left to move along, and of an update of zeros there is none.
    assert DistanceFromDirection(direction)([5 * each for each in direction])[0].abs() < 1e-6
    nothing, slope = DistanceFromDirection(direction)([torch.zeros_like(each) for each in direction])
    assert nothing == 1 and slope.length == 0 and not slope.scale.any()


def test_only_what_convolutions_read_is_laid_out_anew() -> None:
    weight, bias = torch.randn(4, 3, 3, 3).requires_grad_(), torch.randn(4)
    laid = channels_last(weight)
    assert torch.equal(laid, weight) and laid.is_leaf and laid.requires_grad
    assert laid.stride() == (27, 1, 9, 3)
    assert channels_last(bias) is bias


def test_kinks_are_replayed_by_hand() -> None:
    """Recorded at x, run at others: what passed at x passes, whatever its sign; the place of the maximum stays."""
    x, other = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]]), torch.tensor([[[[-1.0, 2.0], [-3.0, 4.0]]]])

    def run(given: Tensor) -> list[list[float]]:
        layers = (F.relu, nn.LeakyReLU(0.5), nn.MaxPool2d(2))
        return [layer(given).flatten().tolist() for layer in layers]

    with RecordedKinks() as kinks:
        assert run(x) == [[1, 0, 3, 0], [1, -1, 3, -2], [3]]
    with ReplayedKinks(kinks.sides):
        assert run(other) == [[-1, 0, -3, 0], [-1, 1, -3, 2], [-3]]

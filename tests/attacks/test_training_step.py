"""Steps computed anew in the backward pass give the gradient of the plain unroll, and hold less of it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from shadow_defense.attacks import local_steps
from shadow_defense.attacks.local_steps import SimulatedTraining, simulate_training
from shadow_defense.attacks.objectives import cosine_distance
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import split_state
from shadow_defense.models.settings import ModelSettings

LABELS = torch.tensor([0, 1, 1, 0, 1])


@pytest.fixture(params=["plain", "recomputed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(local_steps, "RECOMPUTED_ABOVE", 1000 if request.param == "plain" else 0)
    return request.param


def build(normalisation: str, width: int = 8) -> nn.Module:
    chosen = ModelSettings(name="convnet", normalisation=normalisation, width=width, activation="gelu")
    return build_model(chosen, channels=1, classes=2, image_size=(12, 12), seed=0).double()


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_loss(training: SimulatedTraining) -> Tensor:
    """Of the update and, so that they need gradients as well, of every step's statistics."""
    observed = [
        torch.arange(tensor.numel(), dtype=torch.float64).add(index).sin().view_as(tensor)
        for index, tensor in enumerate(training.update)
    ]
    moments = (each for step in training.statistics for each in step.values())
    return cosine_distance(training.update, observed) + sum(
        (0.01 * (each.mean.square().sum() + each.variance.sum()) for each in moments), torch.zeros(())
    )


class Outcome(NamedTuple):
    loss: Tensor
    gradients: Sequence[Tensor]
    buffers: dict[str, Tensor]


def outcome(
    model: nn.Module, local: LocalTraining, labels: Tensor = LABELS, *, above: int, last: int | None = None
) -> Outcome:
    """The loss and its gradients in float64, where more steps than ``above`` are computed anew."""
    parameters, buffers = split_state(model, model)
    variables = [drawn(len(labels), 1, 12, 12, seed=1).requires_grad_()]
    if labels.is_floating_point():
        labels = labels.clone().requires_grad_()
        variables.append(labels)
    with pytest.MonkeyPatch.context() as patch, BatchStatisticsRecorder(model) as recorder:
        patch.setattr(local_steps, "RECOMPUTED_ABOVE", above)
        loss = some_loss(
            simulate_training(
                model, parameters, buffers, variables[0], labels, F.cross_entropy, local, recorder, last=last
            )
        )
        gradients = torch.autograd.grad(loss, variables)
        # What the steps computed anew recorded is gone: the next simulation begins with nothing.
        assert recorder.take() == {}
    return Outcome(loss.detach(), gradients, buffers)


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=0)
    for mine, other in zip(ours.gradients, theirs.gradients, strict=True):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10 * float(other.abs().max()))
    assert all(torch.equal(ours.buffers[name], tensor) for name, tensor in theirs.buffers.items())


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.05)])
@pytest.mark.parametrize(
    ("normalisation", "training"), [("batch", True), ("batch", False), ("group", True), ("none", True)]
)
def test_computed_anew_is_exact(normalisation: str, training: bool, momentum: float, weight_decay: float) -> None:
    """Three batches an epoch, the last of one image; buffers move once a step, to the same place."""
    model = build(normalisation).train(training)
    local = LocalTraining(0.05, 2, 7, "train" if training else "eval", momentum, weight_decay)
    ours, theirs = outcome(model, local, above=0), outcome(model, local, above=1000)
    assert_same(ours, theirs)
    if normalisation == "batch" and training:
        counted = [int(tensor) for name, tensor in ours.buffers.items() if name.endswith("num_batches_tracked")]
        assert counted == [7] * 5


def test_computed_anew_is_exact_for_sought_labels_as_well() -> None:
    labels = drawn(5, 2, seed=9).softmax(1)
    local = LocalTraining(0.05, 2, 6, momentum=0.5)
    ours, theirs = (outcome(build("batch"), local, labels, above=above) for above in (0, 1000))
    assert len(ours.gradients) == 2
    assert_same(ours, theirs)


def test_dropout_draws_the_same_masks_again() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 2)).double()
    outcomes = []
    with torch.random.fork_rng(devices=[]):
        for above in (0, 1000):
            torch.manual_seed(3)
            outcomes.append(outcome(model, LocalTraining(0.1, 5, 6), above=above))
            after = torch.rand(1)
        assert_same(*outcomes)
        # And the draws that follow are the same.
        torch.manual_seed(3)
        outcome(model, LocalTraining(0.1, 5, 6), above=0)
        assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("last", [None, 2])
def test_against_finite_differences(way: str, last: int | None) -> None:
    """The gradient that is truncated is that of the steps kept, from where the others led."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Linear(3, 2)).double()
    parameters, buffers = split_state(model, model)
    images, direction = drawn(4, 1, 2, 2, seed=2), drawn(4, 1, 2, 2, seed=3)
    local = LocalTraining(0.2, 2, 6, momentum=0.9, weight_decay=0.1)
    kept = local.steps if last is None else last

    def loss(moved: Tensor, leading: Tensor) -> Tensor:
        """Of images that the steps at the end see, and those that led there."""
        batches = [leading[:2], leading[2:]] * 3
        batches[local.steps - kept :] = ([moved[:2], moved[2:]] * 3)[local.steps - kept :]
        unrolled, labels = torch.cat(batches), torch.tensor([0, 1, 1, 0] * 3)
        with BatchStatisticsRecorder(model) as recorder:
            given = (model, parameters, buffers, unrolled, labels, F.cross_entropy, local, recorder)
            return some_loss(simulate_training(*given))

    leaf = images.clone().requires_grad_()
    with BatchStatisticsRecorder(model) as recorder:
        given = (model, parameters, buffers, leaf, torch.tensor([0, 1, 1, 0]), F.cross_entropy, local, recorder)
        (gradient,) = torch.autograd.grad(some_loss(simulate_training(*given, last=last)), leaf)
    step = 1e-6
    numeric = (loss(images + step * direction, images) - loss(images - step * direction, images)) / (2 * step)
    numeric = numeric.detach()
    assert abs(float(numeric)) > 1e-4
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=0)


@pytest.mark.parametrize("above", [0, 1000])
def test_truncation_at_all_steps_is_none(above: int) -> None:
    local = LocalTraining(0.05, 2, 6, momentum=0.9)
    full = outcome(build("batch"), local, above=1000)
    for last in (6, 100):
        assert_same(outcome(build("batch"), local, above=above, last=last), full)


def test_truncation_changes_the_gradient_alone() -> None:
    """Three batches an epoch: the last two steps see the images 2, 3 and 4."""
    local = LocalTraining(0.05, 2, 6, momentum=0.9, weight_decay=0.05)
    full = outcome(build("none"), local, above=1000)
    cut = outcome(build("none"), local, above=1000, last=2)
    assert torch.equal(cut.loss, full.loss)
    (truncated,), (whole,) = cut.gradients, full.gradients
    assert truncated[:2].abs().max() == 0 and (truncated[2:].abs().amax((1, 2, 3)) > 0).all()
    assert (truncated[2:] - whole[2:]).norm() > 1e-2 * whole[2:].norm()


@pytest.mark.parametrize("last", [None, 2])
def test_several_candidates_in_one_batch(last: int | None) -> None:
    """Inside vmap nothing is computed anew, however many steps; truncation is the same there."""
    model = build("group")
    parameters, buffers = split_state(model, model)
    constant = {name: tensor.detach() for name, tensor in parameters.items()}
    candidates = drawn(3, 5, 1, 12, 12, seed=4).requires_grad_()
    local = LocalTraining(0.05, 2, local_steps.RECOMPUTED_ABOVE + 2, momentum=0.5)
    with BatchStatisticsRecorder(model) as recorder:

        def loss(images: Tensor, *, mapped: bool) -> Tensor:
            start = constant if mapped else parameters
            given = (model, start, buffers, images, LABELS, F.cross_entropy, local, recorder)
            return some_loss(simulate_training(*given, mapped=mapped, last=last))

        (together,) = torch.autograd.grad(vmap(lambda x: loss(x, mapped=True))(candidates).sum(), candidates)
        (alone,) = torch.autograd.grad(sum(loss(each, mapped=False) for each in candidates), candidates)
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-12)


def test_a_second_derivative_is_refused() -> None:
    model = build("none")
    parameters, buffers = split_state(model, model)
    images = drawn(5, 1, 12, 12, seed=1).requires_grad_()
    local = LocalTraining(0.05, 5, local_steps.RECOMPUTED_ABOVE + 1)
    with BatchStatisticsRecorder(model) as recorder:
        training = simulate_training(model, parameters, buffers, images, LABELS, F.cross_entropy, local, recorder)
    (gradient,) = torch.autograd.grad(some_loss(training), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


class Alive:
    """Bytes of the tensors that are saved for backward passes to come, each storage once."""

    def __init__(self) -> None:
        self.bytes = self.peak = 0
        self._held: Counter[int] = Counter()

    def pack(self, tensor: Tensor) -> Any:
        class Held:
            kept = tensor

        held = Held()
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._held[place] += 1
        if self._held[place] == 1:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        weakref.finalize(held, self._forget, place, size)
        return held

    def _forget(self, place: int, size: int) -> None:
        self._held[place] -= 1
        if not self._held[place]:
            self.bytes -= size


def bytes_saved(steps: int, above: int) -> tuple[int, int]:
    """After the forward pass, and at most until the gradient is there."""
    model, alive = build("batch", width=16), Alive()
    parameters, buffers = split_state(model, model)
    images = drawn(8, 1, 12, 12, seed=1).requires_grad_()
    with (
        pytest.MonkeyPatch.context() as patch,
        BatchStatisticsRecorder(model) as recorder,
        torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda held: held.kept),
    ):
        patch.setattr(local_steps, "RECOMPUTED_ABOVE", above)
        given = (model, parameters, buffers, images, torch.arange(8) % 2, F.cross_entropy, LocalTraining(0.1, 8, steps))
        training = simulate_training(*given, recorder)
        after = alive.bytes
        torch.autograd.grad(some_loss(training), images)
    return after, alive.peak


@pytest.mark.slow
def test_the_graph_of_one_step_is_held_and_not_of_all() -> None:
    plain, plain_peak = bytes_saved(8, above=1000)
    held, peak = bytes_saved(8, above=0)
    assert plain > 4 * held
    assert plain_peak > 2.5 * peak
    # Every further step costs a model, and not a graph.
    assert bytes_saved(16, above=0)[1] - peak < 0.3 * (bytes_saved(16, above=1000)[1] - plain_peak)


def test_few_steps_stay_on_the_graph() -> None:
    """The time is worth more there than the memory."""
    few, many = local_steps.RECOMPUTED_ABOVE, local_steps.RECOMPUTED_ABOVE + 1
    assert bytes_saved(few, above=few)[0] > 2 * bytes_saved(many, above=few)[0]

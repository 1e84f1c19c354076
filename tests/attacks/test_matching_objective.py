"""Candidates simulated in one batch: the losses and gradients are those of each candidate alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import SHAPE, SIDE, normalisation, observation, private
from torch import Tensor, nn
from torch.func import vmap

from shadow_defense.attacks.matching_objective import MatchingObjective, can_be_mapped
from shadow_defense.attacks.objectives import MATCHINGS
from shadow_defense.attacks.observation import Observation
from shadow_defense.attacks.priors import anisotropic_variation
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.build import build_model
from shadow_defense.models.functional import loss_gradients, nested_gradients, split_state
from shadow_defense.models.settings import ModelSettings


def seen(name: str, normalisation: str, *, labels: tuple[int, ...] = (1, 0), batch_size: int = 1) -> Observation:
    chosen = ModelSettings(name=name, normalisation=normalisation, width=8)
    model = build_model(chosen, channels=1, classes=2, image_size=(SIDE, SIDE), seed=0)
    return in_doubles(observation(model, labels, batch_size=batch_size)[0])


def in_doubles(observed: Observation) -> Observation:
    """Rounding to single precision is enough to open or close a ReLU behind batch norm."""

    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    state = {name: double(tensor) for name, tensor in observed.global_state.items()}
    update = {name: double(tensor) for name, tensor in observed.update.tensors.items()}
    return replace(
        observed,
        model=observed.model.double(),
        global_state=state,
        update=replace(observed.update, tensors=update),
    )


def losses(
    observed: Observation,
    at_once: int,
    matching: str,
    batch_norm: float,
    *,
    relative_prior: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Totals, matching losses and the gradient of five candidates."""
    objective = MatchingObjective(
        observed,
        matching=MATCHINGS[matching],
        prior=anisotropic_variation,
        relative_prior=relative_prior,
        longest_unroll=8,
        at_once=at_once,
        batch_norm=batch_norm,
    )
    draws = torch.Generator().manual_seed(1)
    candidates = torch.randn(5, 2, *SHAPE, generator=draws, dtype=torch.float64).requires_grad_()
    with objective:
        found = objective(candidates)
    assert not any(module._forward_pre_hooks for module in observed.model.modules())
    (gradient,) = torch.autograd.grad(found.total.sum(), candidates)
    return found.total.detach(), found.matching, gradient


@pytest.mark.parametrize("matching", ["cosine", "squares"])
@pytest.mark.parametrize(
    ("name", "normalisation", "batch_size"),
    [("lenet", "none", 1), ("convnet", "group", 2), ("convnet", "batch", 2), ("convnet", "batch", 1)],
)
def test_a_batch_of_candidates_gives_what_each_gives_alone(
    name: str, normalisation: str, batch_size: int, matching: str
) -> None:
    """Batch size 1: two local steps are unrolled. Batches of 2 and 3 leave one batch of a single candidate."""
    observed = seen(name, normalisation, batch_size=batch_size)
    alone = losses(observed, 1, matching, 0.1)
    for at_once in (2, 3, 8):
        for one, many in zip(alone, losses(observed, at_once, matching, 0.1), strict=True):
            torch.testing.assert_close(many, one, rtol=1e-8, atol=1e-10)
    assert alone[0].unique().numel() == 5


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_relative_prior_pulls_no_harder_than_it_may(batch_size: int) -> None:
    """Each candidate by itself, alone and in a batch; a bound that nothing reaches changes nothing, to the bit."""
    observed = seen("convnet", "group", batch_size=batch_size)

    def gradient(pull: float, at_once: int = 1) -> Tensor:
        return losses(observed, at_once, "cosine", 0.0, relative_prior=pull)[2]

    unbound, matching = gradient(math.inf), gradient(0.0)
    assert torch.equal(gradient(1e9), unbound)
    prior = unbound - matching
    lengths = [torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (matching, prior)]
    # Between the candidates' own, so that it holds some of them back; one step has a factor for each of two images.
    factors = batch_size
    pull = (lengths[1] / lengths[0]).median().item() / factors
    held = (pull * factors * lengths[0] / lengths[1]).clamp(max=1)
    assert 0 < (held < 1).sum() < 5
    for at_once in (1, 5):
        torch.testing.assert_close(gradient(pull, at_once), matching + held.view(5, 1, 1, 1, 1) * prior)


def test_running_statistics_in_eval_mode_with_momentum_and_weight_decay() -> None:
    observed = seen("convnet", "batch")
    local = LocalTraining(0.1, 1, 2, "eval", momentum=0.9, weight_decay=0.1)
    observed = replace(observed, model=observed.model.eval(), _local_training=local)
    alone, together = (losses(observed, at_once, "squares", 0.0) for at_once in (1, 5))
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-8, atol=1e-10)


def test_a_batch_leaves_the_buffers_of_the_observation_alone() -> None:
    observed = seen("convnet", "batch")
    before = {name: tensor.clone() for name, tensor in observed.model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in observed.global_state.items()}
    losses(observed, 5, "cosine", 0.1)
    assert all(torch.equal(tensor, observed.model.state_dict()[name]) for name, tensor in before.items())
    assert all(torch.equal(tensor, observed.global_state[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("layer", "mapped"),
    [
        (nn.GroupNorm(2, 4), True),
        (nn.GroupNorm(1, 4), True),
        (nn.BatchNorm2d(4).eval(), True),
        (nn.Identity(), True),
        (nn.BatchNorm2d(4), False),
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), False),
        (nn.InstanceNorm2d(4, affine=True), False),
        (nn.LayerNorm([4, 3, 3]), False),
    ],
)
def test_only_what_is_differentiated_rightly_is_mapped(layer: nn.Module, mapped: bool) -> None:
    """The second derivative inside vmap against the plain one; where it is wrong the candidates are taken in turn."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer, nn.GELU(), nn.Flatten(), nn.Linear(36, 2)).double()
    assert can_be_mapped(model) == mapped
    candidates = torch.randn(3, 2, 1, 3, 3, generator=draws, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1])
    parameters, buffers = split_state(model, model)
    recorder = BatchStatisticsRecorder(model)

    def length(gradients: dict[str, Tensor]) -> Tensor:
        return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()

    def inside(images: Tensor, own: dict[str, Tensor]) -> Tensor:
        fixed = {name: tensor.detach() for name, tensor in parameters.items()}
        return length(nested_gradients(model, fixed, own, images, labels, F.cross_entropy, recorder)[0])

    def plain(images: Tensor) -> Tensor:
        return length(loss_gradients(model, parameters, buffers, images, labels, F.cross_entropy, create_graph=True))

    lengths = vmap(inside)(candidates, {name: tensor.expand(3, *tensor.shape) for name, tensor in buffers.items()})
    expected = torch.stack([plain(images) for images in candidates])
    torch.testing.assert_close(lengths, expected)
    (ours,) = torch.autograd.grad(lengths.sum(), candidates)
    (right,) = torch.autograd.grad(expected.sum(), candidates)
    # Should the refused ones come out right as well one day, they can be mapped.
    assert torch.allclose(ours, right, rtol=1e-6, atol=1e-12) == mapped


def test_truncation_still_simulates_every_step() -> None:
    """The true images explain both steps, whose last alone has a gradient; one average step does not explain them."""
    observed = seen("convnet", "group", labels=(1, 1))
    assert observed.local_training.steps == 2
    images = normalisation().apply(private(2)).double()
    # The client's own order is not known.
    orders = torch.stack([images, images.flip(0)]).requires_grad_()
    found, gradients = {}, {}
    for beyond in ("truncated", "averaged"):
        objective = MatchingObjective(
            observed, matching=MATCHINGS["squares"], prior=lambda x: x.sum() * 0, longest_unroll=1, beyond=beyond
        )
        with objective:
            total = objective(orders[:, : len(objective.target.labels)]).total
        found[beyond] = total.min().item()
        (gradients[beyond],) = torch.autograd.grad(total.sum(), orders)
    assert found["truncated"] < 1e-8
    assert found["averaged"] > 1e-2
    assert not gradients["truncated"][:, 0].any()
    assert gradients["truncated"][total.argmax(), 1].any()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_one_step_by_cosine_is_compared_without_its_length(decay: float) -> None:
    """Against torch's own cosine of the whole update ``-eta (g + lambda theta)``; zeros are as far as can be."""
    observed = seen("convnet", "group", labels=(1,))
    local = LocalTraining(0.05, 1, 1, weight_decay=decay)
    observed = replace(observed, _local_training=local)
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters, buffers = split_state(observed.model, observed.global_state)
    target = torch.cat([observed.update.tensors[name].flatten() for name in parameters])
    gradient = loss_gradients(observed.model, parameters, buffers, image, torch.tensor([1]), observed.loss_fn)
    update = torch.cat([(-0.05 * (gradient[n] + decay * p)).flatten() for n, p in parameters.items()])
    expected = 1 - F.cosine_similarity(update, target, 0)
    found = MatchingObjective(observed, matching=MATCHINGS["cosine"], prior=lambda x: x.sum() * 0, longest_unroll=1)(
        image[None]
    ).matching
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-10, atol=0)

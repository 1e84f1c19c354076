"""DLG and iDLG on the sigmoid network they were shown on; and the L-BFGS search below them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.clients import baseline, lenet, observation, private
from torch import Tensor

from shadow_defense.attacks.build import ATTACKS, AttackSettings
from shadow_defense.attacks.deep_leakage import DLG, IDLG
from shadow_defense.attacks.local_steps import simulate_training
from shadow_defense.attacks.objectives import squared_distance
from shadow_defense.attacks.observation import Observation, Reconstruction
from shadow_defense.attacks.quasi_newton import quasi_newton_search
from shadow_defense.attacks.threat_model import threat_model
from shadow_defense.errors import ThreatModelError
from shadow_defense.federated.local_training import LocalTraining
from shadow_defense.metrics.psnr import psnr
from shadow_defense.models.batchnorm import BatchStatisticsRecorder
from shadow_defense.models.functional import split_state
from shadow_defense.progress import Task

ATTACKING = [DLG(restarts=2), IDLG(restarts=2)]


def quality(found: Reconstruction) -> float:
    return psnr(found.images, private(len(found.images))).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKING, ids=["dlg", "idlg"])
def test_rebuilds_a_face(attack: Any) -> None:
    """Nearly exactly; the mean of other faces is at 18 dB, and a single step from noise far below."""
    seen, _ = observation(lenet())
    found = attack.reconstruct(seen, seed=0)
    start = attack.model_copy(update={"iterations": 1, "restarts": 1}).reconstruct(seen, seed=0)
    assert quality(found) > 60
    assert quality(found) > baseline() + 30 and quality(found) > quality(start) + 20
    assert found.matching_loss < 1e-6 < found.history[0]
    assert found.labels.tolist() == [1] and found.iterations < 50
    # A better image is the one with the higher number.
    assert psnr(found.images, private()).item() > psnr(1 - found.images, private()).item()


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKING, ids=["dlg", "idlg"])
@pytest.mark.parametrize("label", [0, 3, 5])
def test_finds_the_label_without_being_told(attack: Any, label: int) -> None:
    """DLG's is the one it optimised, not that of its random start (the defect of a public library)."""
    seen, _ = observation(lenet(classes=6), (label,), classes=6, threat="honest-but-curious server")
    found = attack.model_copy(update={"tolerance": 1e-7}).reconstruct(seen, seed=label)
    assert found.labels.tolist() == [label]
    assert quality(found) > baseline() + 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dlg_keeps_each_label_with_its_image(seed: int) -> None:
    """Images come in any order (the two seeds give one each); the label at a place belongs to the image there."""
    seen, _ = observation(lenet(classes=4), (2, 0), classes=4)
    found = DLG(restarts=1, iterations=40, tolerance=1e-4).reconstruct(seen, seed=seed)
    second = psnr(found.images, private(2)[[1, 1]])
    assert second.max() > baseline(2) + 10 and second.min() < second.max() - 10
    assert int(second.argmax()) == 1 - seed
    assert found.labels[second.argmax()] == 0 and found.labels[second.argmin()] == 2


@pytest.mark.slow
def test_true_labels_are_not_read_even_where_they_are_granted() -> None:
    seen, _ = observation(lenet())
    lying = replace(seen, _labels=torch.tensor([0]))
    for attack in (DLG(iterations=2, restarts=1), IDLG(iterations=2, restarts=1)):
        assert torch.equal(attack.reconstruct(lying, seed=0).images, attack.reconstruct(seen, seed=0).images)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKING, ids=["dlg", "idlg"])
def test_a_random_update_gives_no_face(attack: Any) -> None:
    """And the search gives up instead of using all of its iterations."""
    seen, _ = observation(lenet())
    draws = torch.Generator().manual_seed(0)
    noise = {}
    for name, tensor in seen.update.tensors.items():
        drawn = torch.randn(tensor.shape, generator=draws)
        noise[name] = drawn * tensor.norm() / drawn.norm()
    found = attack.model_copy(update={"restarts": 1}).reconstruct(
        replace(seen, update=replace(seen.update, tensors=noise)), seed=0
    )
    assert quality(found) < baseline()
    assert found.iterations < 30


@pytest.mark.slow
def test_two_local_steps_are_unrolled() -> None:
    seen, _ = observation(lenet(), epochs=2)
    assert quality(IDLG(restarts=2).reconstruct(seen, seed=0)) > baseline() + 20


def test_without_the_learning_rate_nothing_starts() -> None:
    seen, _ = observation(lenet(), threat="eavesdropper")
    for name in ("dlg", "idlg"):
        with pytest.raises(ThreatModelError, match=f"'{name}' reads local training"):
            ATTACKS[name].attack().reconstruct(seen, seed=0)
        with pytest.raises(ThreatModelError, match=f"'{name}' reads local training"):
            AttackSettings(attack=name, threat_model="eavesdropper")
    threat_model("honest-but-curious server").require(DLG.needs, "dlg")


@pytest.mark.slow
def test_restarts_are_chosen_by_the_matching_loss_of_what_is_returned() -> None:
    seen, _ = observation(lenet())
    attack = IDLG(iterations=2, tolerance=0.0, line_search=False)
    found = [attack.model_copy(update={"restarts": count}).reconstruct(seen, seed=2) for count in range(1, 5)]
    losses = [each.matching_loss for each in found]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    for each in found:
        assert matching_loss(seen, each) == pytest.approx(each.matching_loss, rel=1e-3)


def matching_loss(seen: Observation, found: Reconstruction) -> float:
    """From the images as they are returned and one plain backward pass."""
    model = copy.deepcopy(seen.model)
    model.load_state_dict(dict(seen.global_state))
    F.cross_entropy(model(seen.normalisation.apply(found.images)), found.labels).backward()
    ours = torch.cat([-0.1 * parameter.grad.flatten() for parameter in model.parameters()]).double()
    observed = torch.cat([seen.update.tensors[name].flatten() for name, _ in model.named_parameters()]).double()
    return ((ours - observed).square().sum() / observed.square().sum()).item()


@pytest.mark.parametrize("steps", [1, 2])
def test_matching_has_the_right_gradient(steps: int) -> None:
    """Against finite differences, with respect to the image and to the label's logits."""
    model = lenet(classes=3).double()
    parameters, buffers = split_state(model, model)
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    point, direction = (drawn(1, 1, 16, 16), drawn(1, 3)), (drawn(1, 1, 16, 16), drawn(1, 3))
    with BatchStatisticsRecorder(model) as recorder:

        def update(images: Tensor, logits: Tensor) -> list[Tensor]:
            return simulate_training(
                model,
                parameters,
                buffers,
                images,
                logits.softmax(dim=1),
                F.cross_entropy,
                LocalTraining(0.1, 1, steps),
                recorder,
            ).update

        observed = [tensor.detach() for tensor in update(drawn(1, 1, 16, 16), drawn(1, 3))]
        for varied in (0, 1):
            leaves = [tensor.clone().requires_grad_() for tensor in point]
            gradient = torch.autograd.grad(squared_distance(update(*leaves), observed), leaves)[varied]
            values = []
            for sign in (1, -1):
                moved = list(point)
                moved[varied] = point[varied] + sign * 1e-6 * direction[varied]
                values.append(squared_distance(update(*moved), observed).item())
            numeric = (values[0] - values[1]) / 2e-6
            assert abs(numeric) > 1e-3
            assert (gradient * direction[varied]).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_squares_by_hand() -> None:
    ours, observed = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])], [torch.zeros(2), torch.tensor([-2.0])]
    # (9 + 16 + 9) / 4
    assert squared_distance(ours, observed).item() == pytest.approx(8.5)
    tiny = [[1e-12 * tensor for tensor in each] for each in (ours, observed)]
    assert squared_distance(*tiny).item() == pytest.approx(8.5, rel=1e-4)


def rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[0]).square() + 100 * (x[1] - x[0].square()).square()).sum()


class Counting(Task):
    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps


def minimise(loss: Any, start: Tensor, **changes: Any) -> Any:
    given: dict[str, Any] = {"iterations": 30, "tolerance": 1e-10, "line_search": True}
    return quasi_newton_search(loss, [start], **{**given, **changes})


def test_search_finds_the_minimum_of_a_curved_valley_and_stops() -> None:
    task = Counting()
    found = minimise(rosenbrock, torch.tensor([-1.2, 1.0]), task=task)
    torch.testing.assert_close(found.variables[0], torch.ones(2), rtol=0, atol=1e-4)
    assert found.loss <= 1e-10 and len(found.history) < 30
    assert task.steps == 30


def test_search_keeps_the_best_point_it_met() -> None:
    """The loss is least at the 7th evaluation of 20, whatever the point."""
    seen: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sum() - x.sum().detach() + abs(len(seen) - 7)

    found = minimise(loss, torch.zeros(2), iterations=1, line_search=False)
    assert len(seen) > 10 and found.loss == 0
    assert torch.equal(found.variables[0], seen[6]) and not torch.equal(seen[6], seen[-1])


@pytest.mark.parametrize("line_search", [True, False])
def test_search_survives_losses_that_are_not_numbers(line_search: bool) -> None:
    """Below 0.5 there is nothing but NaN."""
    found = minimise(lambda x: (x - 0.5).sqrt().sum(), torch.tensor([0.9, 0.8]), line_search=line_search)
    assert torch.isfinite(found.variables[0]).all() and (found.variables[0] >= 0.5).all()
    assert math.isfinite(found.loss)


def test_search_that_meets_nothing_but_not_a_number_returns_its_start() -> None:
    start = torch.tensor([0.3])
    found = minimise(lambda x: (x * float("nan")).sum(), start, line_search=False)
    assert torch.equal(found.variables[0], start) and found.loss == math.inf

"""OUTPOST: numbers worked out by hand, a reference in numpy, counting, and that it really perturbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.outpost import (
    OUTPOST_PRESETS,
    OutpostDefense,
    OutpostSettings,
    fisher_of_rows,
    parameter_risk,
    perturb,
    perturbation_probability,
)
from shadow_defense.files import flatten_tensors, nest_tensors, read_tensors, write_tensors
from shadow_defense.seeds import named_generator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def released(gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    chosen = {"fisher_percent": 40.0, "prune_percent": 80.0, "noise": 0.8, "draws": seeded(), **changes}
    return perturb(gradients, parameters, fisher_of_rows(gradients), **chosen)


@pytest.mark.parametrize(("step", "expected"), [(0, 1), (1, 0.8888889), (2, 0.8), (8, 0.5), (72, 0.1)])
def test_probabilities_of_the_specification(step: int, expected: float) -> None:
    assert perturbation_probability(step, 0.125) == pytest.approx(expected, rel=1e-6)
    assert perturbation_probability(step, 0.0) == 1


def test_risks_of_the_specification() -> None:
    assert parameter_risk(torch.tensor([[0.1, 0.3], [0.5, 0.7]])) == pytest.approx(0.0666667, rel=1e-5)
    assert parameter_risk(torch.tensor([[1.0, 3.0], [5.0, 7.0]])) == 1
    assert parameter_risk(torch.tensor([3.0])) == parameter_risk(torch.tensor(3.0)) == 0
    assert parameter_risk(torch.ones(8)) == 0


GRADIENTS = {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([1.0, 3.0])}
PARAMETERS = {"weight": torch.tensor([[1.0, 3.0], [5.0, 7.0]]), "bias": torch.tensor([0.1, 0.5])}


def test_pruning_and_mask_of_the_specification() -> None:
    fisher = fisher_of_rows(GRADIENTS)
    assert fisher["weight"].tolist() == [5.0, 10.0] and fisher["bias"].item() == 5.0
    pruned = released(GRADIENTS, PARAMETERS, noise=0.0)
    assert pruned["weight"].tolist() == [[0.0, 0.0], [0.0, 4.0]]
    assert pruned["bias"].tolist() == [0.0, 3.0]
    noisy = released(GRADIENTS, PARAMETERS)
    changed = {name: noisy[name] != pruned[name] for name in noisy}
    assert changed["weight"].tolist() == [[False, True], [False, True]]
    assert not changed["bias"].any()


def naive(
    gradients: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    normal: Mapping[str, np.ndarray],
    phi: float,
    rho: float,
    noise: float,
) -> dict[str, np.ndarray]:
    """Section 7's pseudo-code with numpy's own percentile and variance."""
    fisher = {name: np.mean(g * g, axis=0) for name, g in gradients.items()}
    tau = np.percentile(np.concatenate([np.ravel(values) for values in fisher.values()]), 100 - phi)
    sent = {}
    for name, g in gradients.items():
        risk = min(np.var(parameters[name], ddof=1), 1) if g.size >= 2 else 0
        base = np.where(np.abs(g) < np.percentile(np.abs(g), rho), 0, g)
        sent[name] = base + normal[name] * noise * risk * (fisher[name] >= tau)
    return sent


@pytest.mark.parametrize(
    ("phi", "rho", "noise"),
    [(40.0, 80.0, 0.8), (10.0, 80.0, 0.1), (40.0, 0.0, 2.0), (100.0, 50.0, 1.0), (0.0, 99.0, 1.0)],
)
def test_against_numpy(phi: float, rho: float, noise: float) -> None:
    draws = seeded(5)
    shapes = {"conv": (4, 3, 3, 3), "norm": (4,), "one": (1,), "fc": (2, 16), "bias": (2,)}
    gradients = {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}
    parameters = {
        name: scale * torch.randn(shape, generator=draws, dtype=torch.float64)
        for (name, shape), scale in zip(shapes.items(), (0.1, 1, 1, 3, 0.5), strict=True)
    }
    sent = released(gradients, parameters, fisher_percent=phi, prune_percent=rho, noise=noise, draws=seeded(9))
    normals = seeded(9)
    normal = {name: torch.randn(s, generator=normals, dtype=torch.float64).numpy() for name, s in shapes.items()}
    expected = naive(
        {name: tensor.numpy() for name, tensor in gradients.items()},
        {name: tensor.numpy() for name, tensor in parameters.items()},
        normal,
        phi,
        rho,
        noise,
    )
    for name, tensor in sent.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-10, atol=1e-12)


def test_entrywise_fisher_values_mask_entries() -> None:
    fisher = {name: gradient.square() for name, gradient in GRADIENTS.items()}
    # (1, 4, 9, 16, 1, 9): the largest 40 percent are 9 or more.
    noisy = perturb(GRADIENTS, PARAMETERS, fisher, fisher_percent=40.0, prune_percent=0.0, noise=1.0, draws=seeded())
    assert (noisy["weight"] != GRADIENTS["weight"]).tolist() == [[False, False], [True, True]]
    assert (noisy["bias"] != GRADIENTS["bias"]).tolist() == [False, True]


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20))
def test_without_noise_and_pruning_it_is_the_identity_and_aliases_nothing(values: list[float]) -> None:
    tensors = {"a": torch.tensor(values), "b": torch.tensor([[1.0], [2.0]])}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    same = released(tensors, tensors, noise=0.0, prune_percent=0.0)
    for name, tensor in same.items():
        assert torch.equal(tensor, before[name])
        tensor += 1
        assert torch.equal(tensors[name], before[name])


def test_draws_follow_the_generator_only() -> None:
    torch.manual_seed(0)
    first = released(GRADIENTS, PARAMETERS, prune_percent=0.0)
    torch.manual_seed(1)
    again = released(GRADIENTS, PARAMETERS, prune_percent=0.0)
    other = released(GRADIENTS, PARAMETERS, prune_percent=0.0, draws=seeded(1))
    assert torch.equal(first["weight"], again["weight"]) and not torch.equal(first["weight"], other["weight"])


def context_of(model: nn.Module, round: int = 0) -> RoundContext:
    return RoundContext(model, model.state_dict(), F.cross_entropy, round, 10, 0.1)


def batch_of(*samples: str) -> Batch:
    return Batch(torch.zeros(len(samples), 1, 2, 2), torch.zeros(len(samples), dtype=torch.int64), samples)


class Counting(OutpostDefense):
    def _iteration(self, batch: Batch) -> int:
        counted.append(super()._iteration(batch))
        return counted[-1]


counted: list[int] = []


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        ("round", [1, 2, 3, 4, 5, 6] * 2),
        # Epochs 1 and 2 of three batches each.
        ("released", [1, 2, 3, 2, 4, 6] * 2),
        ("cumulative", list(range(1, 13))),
    ],
)
def test_counting(local_round: Callable[..., object], count: str, expected: list[int]) -> None:
    counted.clear()
    defense = Counting(OutpostSettings(count=count), 0)
    for round in (0, 1):
        local_round(defense, count=5, batch_size=2, local_epochs=2, round=round)
    assert counted == expected
    # Computed again, a round is counted once.
    local_round(defense, count=5, batch_size=2, local_epochs=2, round=1)
    assert counted[12:] == expected[6:]


def test_the_count_goes_on_after_a_restart(local_round: Callable[..., object], tmp_path: Any) -> None:
    counted.clear()
    first = Counting(OutpostSettings(count="cumulative"), 0)
    for round in (0, 1):
        local_round(first, count=4, batch_size=2, round=round)
    path = tmp_path / "state.safetensors"
    write_tensors(path, flatten_tensors(first.state_dict()))
    resumed = Counting(OutpostSettings(count="cumulative"), 0)
    resumed.load_state_dict(nest_tensors(read_tensors(path, "")[0]))
    local_round(resumed, count=4, batch_size=2, round=2)
    assert counted == [1, 2, 3, 4, 5, 6]


def test_one_step_in_training(local_round: Callable[..., object], build: Callable[..., nn.Module]) -> None:
    """With beta = 0 every step is perturbed: -lr times the reference, and the buffers as they were."""
    plain = local_round(normalisation="batch").update.tensors
    defense = OutpostDefense(OutpostSettings(decay=0), seed=3)
    assert defense.acts_on == {"gradients"}
    result = local_round(defense, normalisation="batch")
    sent = result.update.tensors
    parameters = {name: parameter.detach() for name, parameter in build("batch").named_parameters()}
    gradients = {name: (plain[name] / -0.1).numpy() for name in parameters}
    draws = named_generator(3, "outpost", 0, 0)
    torch.rand((), generator=draws)
    normal = {name: torch.randn(tensor.shape, generator=draws).numpy() for name, tensor in parameters.items()}
    reference = naive(gradients, {name: tensor.numpy() for name, tensor in parameters.items()}, normal, 40, 80, 0.8)
    entries = wrong = 0
    for name in parameters:
        # Gradients read from the update are rounded, and some change sides of a threshold.
        close = np.isclose(sent[name].numpy(), -0.1 * reference[name], rtol=1e-2, atol=1e-6)
        entries, wrong = entries + close.size, wrong + (~close).sum()
        assert not torch.equal(sent[name], plain[name])
    assert wrong <= 0.003 * entries
    for name in set(plain) - set(parameters):
        assert torch.equal(plain[name], sent[name])
    assert result.measurements == {"perturbed_share": 1.0}


def test_unperturbed_steps_are_plain(local_round: Callable[..., object]) -> None:
    """At an enormous beta no step is perturbed; the gradients are the same values in tensors of their own."""
    defense = OutpostDefense(OutpostSettings(decay=1e9), seed=0)
    result = local_round(defense, count=4, batch_size=2)
    plain = local_round(count=4, batch_size=2).update.tensors
    assert all(torch.equal(tensor, plain[name]) for name, tensor in result.update.tensors.items())
    assert result.measurements == {"perturbed_share": 0.0}
    model = nn.Linear(2, 2)
    defense.begin_round(context_of(model))
    gradients = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    sent = defense.protect_gradients(gradients, batch_of("a"), context_of(model))
    assert all(sent[name].data_ptr() != gradients[name].data_ptr() for name in gradients)


def sent_over_steps(seed: int, round: int, steps: int, **settings: Any) -> tuple[list[Tensor], float]:
    model = nn.Linear(8, 4)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 8, generator=seeded()))
    gradients = {"weight": torch.randn(4, 8, generator=seeded(1)), "bias": torch.randn(4, generator=seeded(2))}
    defense = OutpostDefense(OutpostSettings(**settings), seed)
    defense.begin_round(context_of(model, round))
    sent = [
        defense.protect_gradients(gradients, batch_of(str(step)), context_of(model, round))["weight"]
        for step in range(steps)
    ]
    return sent, defense.measurements()["perturbed_share"]


def test_every_step_round_and_client_draws_its_own_noise_and_a_round_repeats() -> None:
    """The public version draws the same noise at every step."""
    runs = [sent_over_steps(seed, round, 3, decay=0)[0] for seed, round in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert all(torch.equal(first, again) for first, again in zip(runs[0], runs[3], strict=True))
    different = [tensor for run in runs[:3] for tensor in run]
    assert len({tuple(tensor.flatten().tolist()) for tensor in different}) == 9


@pytest.mark.slow
def test_the_share_of_perturbed_steps_is_the_sum_of_the_probabilities() -> None:
    steps, rounds = 40, 60
    shares = [sent_over_steps(0, round, steps)[1] for round in range(rounds)]
    expected = np.array([1 / (1 + 0.125 * step) for step in range(1, steps + 1)])
    spread = np.sqrt((expected * (1 - expected)).sum() / steps**2 / rounds)
    assert np.mean(shares) == pytest.approx(expected.mean(), abs=4 * spread)


def test_the_averaged_fisher_is_over_the_batches_of_the_round() -> None:
    defense = OutpostDefense(
        OutpostSettings(fisher="averaged", decay=0, noise=1, prune_percent=0, fisher_percent=50), 0
    )
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    defense.begin_round(context_of(model))
    # Squares (4, 1), then with (0, 2.25) the mean (2, 1.625), then with (0, 9) the mean (4 / 3, 12.25 / 3).
    steps = [([[2.0, 1.0]], [True, False]), ([[0.0, 1.5]], [True, False]), ([[0.0, 3.0]], [False, True])]
    for gradient, touched in steps:
        given_gradient = {"weight": torch.tensor(gradient)}
        sent = defense.protect_gradients(given_gradient, batch_of("a"), context_of(model))
        assert (sent["weight"] != given_gradient["weight"])[0].tolist() == touched
    defense.begin_round(context_of(model, 1))
    first = defense.protect_gradients({"weight": torch.tensor([[2.0, 1.0]])}, batch_of("a"), context_of(model, 1))
    assert first["weight"][0, 1] == 1


def test_presets() -> None:
    paper = OutpostSettings(**OUTPOST_PRESETS["paper"])
    assert (paper.decay, paper.fisher_percent, paper.prune_percent, paper.noise) == (0.125, 40, 80, 0.8)
    weak, strong = (OutpostSettings(**OUTPOST_PRESETS[name]) for name in ("weak", "strong"))
    assert (weak.fisher_percent, weak.noise, strong.decay) == (10, 0.1, 0)

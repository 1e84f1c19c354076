"""Censor: numbers worked out by hand, orthogonality and norms, the choice, the model it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.censor import (
    CENSOR_PRESETS,
    CensorDefense,
    CensorSettings,
    Chosen,
    censor,
    orthogonal_candidate,
    unit_and_norm,
)
from shadow_defense.errors import DefenseError
from shadow_defense.seeds import named_generator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidate(gradient: Tensor, random: Tensor, rule: str = "correct") -> Tensor:
    unit, norm = unit_and_norm(gradient)
    return orthogonal_candidate(unit, norm, random, rule)


def cosine(first: Tensor, second: Tensor) -> float:
    return F.cosine_similarity(first.double().flatten(), second.double().flatten(), dim=0).item()


@pytest.mark.parametrize(
    ("gradient", "rule", "expected"),
    [
        ([3.0, 4.0], "correct", [4.0, -3.0]),
        ([3.0, 4.0], "released", [-1.581139, -4.743416]),
        ([0.6, 0.8], "correct", [0.8, -0.6]),
        ([0.6, 0.8], "released", [0.8, -0.6]),
    ],
)
def test_numbers_of_the_specification(gradient: list[float], rule: str, expected: list[float]) -> None:
    """o = (.64, -.48) before it is rescaled, which is (.8, -.6) at a norm of 1."""
    found = candidate(torch.tensor(gradient), torch.tensor([1.0, 0.0]), rule)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    if gradient == [3.0, 4.0]:
        assert cosine(found, torch.tensor(gradient)) == pytest.approx(0 if rule == "correct" else -0.9486833, abs=1e-6)


@pytest.mark.parametrize(("count", "norm", "expected"), [(10, 5, 0.80), (512, 20, 0.64)])
def test_the_released_rule_leaves_the_gradient_readable_where_it_is_long(
    count: int, norm: float, expected: float
) -> None:
    gradient, random = torch.zeros(count), torch.zeros(count)
    gradient[0] = norm
    c = 1 / math.sqrt(count)
    random[0], random[1] = c, math.sqrt(1 - c * c)
    assert abs(cosine(candidate(gradient, random, "released"), gradient)) == pytest.approx(expected, abs=5e-3)
    assert abs(cosine(candidate(gradient, random, "correct"), gradient)) < 1e-6


@given(
    count=st.integers(2, 3000),
    scale=st.sampled_from([1e-30, 1e-21, 1e-6, 1.0, 1e6, 1e15]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_correct_candidates_are_orthogonal_and_as_long(count: int, scale: float, seed: int, dtype: torch.dtype) -> None:
    draws = seeded(seed)
    gradient = scale * torch.randn(count, generator=draws, dtype=dtype)
    found = candidate(gradient, torch.randn(count, generator=draws, dtype=dtype))
    assert found.dtype == dtype and found.shape == gradient.shape
    assert abs(cosine(found / scale, gradient / scale)) < 1e-5
    assert found.double().norm().item() == pytest.approx(gradient.double().norm().item(), rel=1e-5, abs=0)


def test_large_tensors_too() -> None:
    gradient = 1e-3 * torch.randn(1000, 2000, generator=seeded()) + 1e-3
    found = candidate(gradient, torch.randn(1000, 2000, generator=seeded(1)))
    assert abs(cosine(found, gradient)) < 1e-5
    assert found.double().norm().item() == pytest.approx(gradient.double().norm().item(), rel=1e-5, abs=0)


@pytest.mark.parametrize("rule", ["correct", "released"])
@pytest.mark.parametrize("gradient", [torch.tensor([-3.0]), torch.tensor(2.0), torch.zeros(3), torch.zeros(0)])
def test_without_an_orthogonal_direction_zero_is_sent(gradient: Tensor, rule: str) -> None:
    """Rounding residues, scaled up, would be plus or minus the gradient itself."""
    for seed in range(20):
        found = candidate(gradient, torch.randn(gradient.shape, generator=seeded(seed)), rule)
        assert torch.equal(found, torch.zeros_like(gradient))


def test_a_draw_along_the_gradient_leaves_nothing() -> None:
    gradient = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(candidate(gradient, 7 * gradient), torch.zeros(3))


def test_a_draw_nearly_along_the_gradient_is_projected_twice() -> None:
    """One pass leaves what rounding leaves of r, which is long beside so short a remainder."""
    gradient = torch.tensor([0.123, 4.56, -7.89, 1.01])
    for seed in range(10):
        random = gradient / gradient.norm() + 1e-4 * torch.randn(4, generator=seeded(seed))
        assert abs(cosine(candidate(gradient, random), gradient)) < 1e-6


GRADIENTS = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([1.0, -1.0])}


def towards(target: Mapping[str, Tensor]) -> Callable[[Mapping[str, Tensor]], float]:
    """A loss that falls along ``target``."""
    return lambda step: -sum(float((step[name] * target[name]).sum()) for name in target)


def test_the_candidate_of_least_loss_is_chosen() -> None:
    losses, candidates = iter([3.0, 1.0, 2.0, 1.5]), []

    def loss_with(step: Mapping[str, Tensor]) -> float:
        candidates.append({name: tensor.clone() for name, tensor in step.items()})
        return next(losses)

    chosen = censor(GRADIENTS, loss_with, 2.5, trials=4, draws=seeded())
    assert (chosen.accepted, chosen.raw) == (True, False)
    assert all(torch.equal(chosen.tensors[name], candidates[1][name]) for name in GRADIENTS)
    assert len({tuple(each["w"].flatten().tolist()) for each in candidates}) == 4


@pytest.mark.parametrize(("fallback", "raw"), [("best_candidate", False), ("raw", True)])
def test_what_is_sent_where_no_candidate_lowers_the_loss(fallback: Any, raw: bool) -> None:
    chosen = censor(GRADIENTS, lambda step: 2.0, 2.0, trials=3, draws=seeded(), fallback=fallback)
    assert (chosen.accepted, chosen.raw) == (False, raw)
    for name, gradient in GRADIENTS.items():
        assert torch.equal(chosen.tensors[name], gradient) == raw
        assert chosen.tensors[name].data_ptr() != gradient.data_ptr()
        if not raw:
            assert abs(cosine(chosen.tensors[name], gradient)) < 1e-5


def test_candidates_without_a_finite_loss_are_never_sent() -> None:
    with pytest.raises(DefenseError, match="none of Censor's 3 candidates has a finite loss") as raised:
        censor(GRADIENTS, lambda step: math.nan, 2.0, trials=3, draws=seeded())
    assert "\n" not in str(raised.value)
    losses = iter([math.nan, 5.0, math.inf])
    chosen = censor(GRADIENTS, lambda step: next(losses), 2.0, trials=3, draws=seeded())
    assert not chosen.accepted and not chosen.raw


@pytest.mark.parametrize("fallback", ["best_candidate", "raw"])
def test_no_trials_is_the_identity_without_aliasing(fallback: Any) -> None:
    before = {name: tensor.clone() for name, tensor in GRADIENTS.items()}
    chosen = censor(GRADIENTS, lambda step: 0.0, 1.0, trials=0, draws=seeded(), fallback=fallback)
    assert chosen.raw and not chosen.accepted
    for name, tensor in chosen.tensors.items():
        assert torch.equal(tensor, before[name])
        tensor += 1
        assert torch.equal(GRADIENTS[name], before[name])


def test_draws_follow_the_generator_only() -> None:
    def once(seed: int) -> Chosen:
        return censor(GRADIENTS, towards(GRADIENTS), 0.0, trials=5, draws=seeded(seed))

    torch.manual_seed(0)
    first = once(0)
    torch.manual_seed(1)
    assert torch.equal(first.tensors["w"], once(0).tensors["w"])
    assert not torch.equal(first.tensors["w"], once(1).tensors["w"])


def test_more_trials_never_find_less() -> None:
    target = {name: torch.randn(tensor.shape, generator=seeded(4)) for name, tensor in GRADIENTS.items()}
    losses = [
        towards(target)(censor(GRADIENTS, towards(target), 0.0, trials=trials, draws=seeded()).tensors)
        for trials in (1, 5, 20)
    ]
    assert losses[0] >= losses[1] >= losses[2] and losses[0] > losses[2]


def parameter_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("place", ["gradients", "update"])
@pytest.mark.parametrize("normalisation", ["group", "batch"])
def test_one_step_in_training(
    local_round: Callable[..., object], build: Callable[..., nn.Module], place: Any, normalisation: str
) -> None:
    """Orthogonal to the undefended update and as long, tensor by tensor; at both places, with the buffers open."""
    plain = local_round(normalisation=normalisation).update.tensors
    defense = CensorDefense(CensorSettings(place=place), seed=2)
    assert defense.acts_on == {place}
    result = local_round(defense, normalisation=normalisation)
    names = parameter_names(build(normalisation))
    for name in names:
        sent, raw = result.update.tensors[name], plain[name]
        # What the update holds has been added to a parameter and taken away again.
        assert abs(cosine(sent, raw)) < (1e-5 if place == "update" else 2e-3), name
        assert sent.norm().item() == pytest.approx(raw.norm().item(), rel=1e-3), name
    for name in set(plain) - set(names):
        assert torch.equal(plain[name], result.update.tensors[name])
    assert result.measurements["raw_share"] == 0
    assert (
        local_round(CensorDefense(CensorSettings(place=place), seed=3))
        .update.tensors[names[0]]
        .ne(result.update.tensors[names[0]])
        .any()
    )
    again = local_round(CensorDefense(CensorSettings(place=place), seed=2), normalisation=normalisation)
    assert all(torch.equal(tensor, again.update.tensors[name]) for name, tensor in result.update.tensors.items())


def context_of(model: nn.Module, **changes: Any) -> RoundContext:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return RoundContext(
        **{
            "model": model,
            "global_state": state,
            "loss_fn": F.cross_entropy,
            "round": 0,
            "rounds": 20,
            "learning_rate": 0.1,
            **changes,
        }
    )


def batch_of(count: int = 4) -> Batch:
    images = torch.randn(count, 1, 16, 16, generator=seeded(8))
    return Batch(images, torch.arange(count) % 2, tuple(str(index) for index in range(count)))


def gradients_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    loss = F.cross_entropy(model(batch.images), batch.labels)
    return dict(zip(parameter_names(model), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize(("learning_rate", "used"), [(None, 0.1), (0.5, 0.5)])
def test_the_choice_is_the_least_loss_after_the_step_in_eval_mode(
    build: Callable[..., nn.Module], learning_rate: float | None, used: float
) -> None:
    model, batch = build("batch").train(), batch_of()
    gradients = gradients_of(model, batch)
    defense = CensorDefense(CensorSettings(trials=6, learning_rate=learning_rate), seed=0)
    defense.begin_round(context_of(model))
    sent = defense.protect_gradients(gradients, batch, context_of(model))
    # The same draws, one trial at a time, into a model of its own.
    draws, losses, candidates = named_generator(0, "censor", 0, 0), [], []
    for _ in range(6):
        twin = build("batch")
        twin.load_state_dict(model.state_dict())
        twin.eval()
        candidates.append({})
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                random = torch.randn(parameter.shape, generator=draws)
                candidates[-1][name] = candidate(gradients[name], random)
                parameter -= used * candidates[-1][name]
            losses.append(F.cross_entropy(twin(batch.images), batch.labels).item())
    best = min(range(6), key=losses.__getitem__)
    assert all(torch.equal(sent[name], tensor) for name, tensor in candidates[best].items())
    with torch.no_grad():
        before = F.cross_entropy(model.eval()(batch.images), batch.labels).item()
    assert defense.measurements() == {"acceptance_rate": float(min(losses) < before), "raw_share": 0.0}


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_the_model_is_left_as_it_was(build: Callable[..., nn.Module], place: Any) -> None:
    model, batch = build("batch").train(), batch_of()
    model.features.norm1.eval()
    model.features.add_module("dropout", nn.Dropout(0.5))
    gradients = gradients_of(model, batch)
    context = context_of(model)
    before = context.global_state
    modes, random_state = [module.training for module in model.modules()], torch.get_rng_state()
    defense = CensorDefense(CensorSettings(place=place, trials=3), seed=0)
    defense.begin_round(context)
    given_gradients = {name: tensor.clone() for name, tensor in gradients.items()}
    defense.protect_gradients(gradients, batch, context)
    updates = {name: torch.full_like(tensor, 1) for name, tensor in model.state_dict().items()}
    defense.protect_update(updates, context)
    assert all(torch.equal(tensor, given_gradients[name]) for name, tensor in gradients.items())
    assert all((tensor == 1).all() for tensor in updates.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_frozen_parameters_are_left_out_of_gradients(build: Callable[..., nn.Module]) -> None:
    model, batch = build(), batch_of()
    gradients = gradients_of(model, batch)
    model.features.conv0.weight.requires_grad_(False)
    del gradients["features.conv0.weight"]
    defense = CensorDefense(CensorSettings(trials=2), seed=0)
    defense.begin_round(context_of(model))
    assert list(defense.protect_gradients(gradients, batch, context_of(model))) == list(gradients)


@pytest.mark.parametrize("place", ["gradients", "update"])
def test_later_rounds_are_raw_unless_all_are_protected(local_round: Callable[..., object], place: Any) -> None:
    plain = local_round(round=10).update.tensors
    late = local_round(CensorDefense(CensorSettings(place=place), 0), round=10)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in late.update.tensors.items())
    assert late.measurements == {"acceptance_rate": 0.0, "raw_share": 1.0}
    assert local_round(CensorDefense(CensorSettings(place=place), 0), round=9).measurements["raw_share"] == 0
    always = CensorSettings(place=place, **CENSOR_PRESETS["strong"])
    assert local_round(CensorDefense(always, 0), round=10).measurements["raw_share"] == 0


def test_raw_fallbacks_are_counted(local_round: Callable[..., object]) -> None:
    """A step too short to move any parameter lowers no loss: every message is the gradient itself."""
    plain = local_round(count=4, batch_size=2).update.tensors
    defense = CensorDefense(CensorSettings(fallback="raw", learning_rate=1e-30, trials=3), 0)
    result = local_round(defense, count=4, batch_size=2)
    assert result.measurements == {"acceptance_rate": 0.0, "raw_share": 1.0}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in result.update.tensors.items())


def test_an_update_is_tried_on_the_first_batch_at_the_global_model(build: Callable[..., nn.Module]) -> None:
    model, first = build(), batch_of(4)
    seen = []

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((logits.clone(), labels))
        return F.cross_entropy(logits, labels)

    context = context_of(model, loss_fn=loss_fn)
    defense = CensorDefense(CensorSettings(place="update", trials=2), 0)
    defense.begin_round(context)
    defense.protect_gradients({}, first, context)
    defense.protect_gradients({}, batch_of(1), context)
    logits = model(first.images).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    update = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    sent = defense.protect_update(update, context)
    torch.testing.assert_close(seen[0][0], logits)
    assert all(torch.equal(labels, first.labels) for _, labels in seen) and len(seen) == 3
    after = build()
    after.load_state_dict({name: context.global_state[name] + tensor for name, tensor in sent.items()})
    best = min(range(1, 3), key=lambda index: F.cross_entropy(*seen[index]).item())
    torch.testing.assert_close(seen[best][0], after(first.images).detach())
    with pytest.raises(DefenseError, match="no image in this round"):
        defense.begin_round(context)
        defense.protect_update(update, context)


def test_steps_and_rounds_draw_their_own(local_round: Callable[..., object]) -> None:
    class Recording(CensorDefense):
        def protect(self, tensors, batch, context):  # type: ignore[no-untyped-def]
            sent = super().protect(tensors, batch, context)
            directions.append(tuple((sent["classifier.weight"] / sent["classifier.weight"].norm()).flatten().tolist()))
            return sent

    directions: list[tuple[float, ...]] = []
    for seed, round in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        local_round(Recording(CensorSettings(trials=1), seed), count=4, batch_size=2, round=round)
    assert len(directions) == 8 and len(set(directions[:6])) == 6
    assert directions[:2] == directions[6:]


def test_presets() -> None:
    assert CensorSettings(**CENSOR_PRESETS["paper"]) == CensorSettings()
    assert (CensorSettings().trials, CensorSettings().rule, CensorSettings().fallback) == (
        20,
        "correct",
        "best_candidate",
    )
    assert CensorSettings(**CENSOR_PRESETS["weak"]).fallback == "raw"
    released = CensorSettings(**CENSOR_PRESETS["released"])
    assert (released.rule, released.fallback, released.learning_rate) == ("released", "raw", 1e-4)

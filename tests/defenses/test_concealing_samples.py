"""DCS: a cone worked out by hand, closed forms of a linear model, finite differences, what is sent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import Batch, RoundContext
from shadow_defense.defenses.concealing_samples import (
    CONCEALING_SAMPLES_PRESETS,
    ConcealingSamplesDefense,
    ConcealingSamplesSettings,
)
from shadow_defense.defenses.concealment import (
    Concealment,
    image_distance,
    outputs_and_gradients,
    search_rate,
    turn_towards,
)
from shadow_defense.errors import DataError, DefenseError
from shadow_defense.models.functional import split_state, training_mode

Build = Callable[..., nn.Module]
NORMALISATION = Normalisation((0.5,), (0.25,))


def public(count: int = 6, side: int = 16, classes: int = 2) -> ImageSet:
    draws = torch.Generator().manual_seed(9)
    images = torch.randint(0, 256, (count, 1, side, side), generator=draws, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes, tuple(f"public/{index}" for index in range(count)))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(seed: int = 0, images: ImageSet | None = None, **settings: Any) -> ConcealingSamplesDefense:
    chosen = ConcealingSamplesSettings(**settings)
    return ConcealingSamplesDefense(chosen, public() if images is None else images, NORMALISATION, 2, seed)


def concealment(
    model: nn.Module, images: Tensor, labels: Tensor, public_labels: Tensor, **settings: float
) -> Concealment:
    parameters, buffers = split_state(model, model)
    with training_mode(model, False):
        outputs, clean = outputs_and_gradients(model, parameters, buffers, images, labels, F.cross_entropy)
    chosen = {"distance_decay": 0.01, "output_weight": 0.01, **settings}
    return Concealment(
        model.eval(), parameters, buffers, F.cross_entropy, images, public_labels, outputs.detach(), clean, **chosen
    )


def product(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return sum(float((first[name].double() * second[name].double()).sum()) for name in first)


@pytest.mark.parametrize(
    ("mixed", "expected"), [([-1.0, 1.0], [-0.000999001, 1.0]), ([-0.2, 1.0], [0.3, 1.0]), ([0.2, 1.0], [0.2, 1.0])]
)
def test_the_cone_of_the_specification(mixed: list[float], expected: list[float]) -> None:
    """v = .9990010 for (-1, 1), the margin .5 for (-.2, 1), nothing for what points along the gradient."""
    turned, done = turn_towards({"w": torch.tensor(mixed)}, {"w": torch.tensor([1.0, 0.0])}, margin=0.5)
    torch.testing.assert_close(turned["w"], torch.tensor(expected), rtol=0, atol=1e-6)
    assert done == (mixed[0] < 0)


@given(
    values=st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=9),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_an_obtuse_angle_is_closed_up_to_the_damping(values: list[tuple[float, float]], scale: float) -> None:
    """Product and norm are over all tensors; nothing is aliased."""
    columns = torch.tensor(values, dtype=torch.float64) * scale
    mixed = {"a": columns[:1, 0].clone(), "b": columns[1:, 0].clone()}
    clean = {"a": columns[:1, 1].clone(), "b": columns[1:, 1].clone()}
    before, square = product(mixed, clean), product(clean, clean)
    rounding = 1e-12 * (math.sqrt(product(mixed, mixed) * square) + square)
    kept = {name: tensor.clone() for name, tensor in mixed.items()}
    turned, done = turn_towards(mixed, clean)
    after = product(turned, clean)
    assert done == (before < 0)
    if done:
        assert after >= before * 1e-3 / (square + 1e-3) - rounding
        assert after >= before + 0.5 * square - rounding
    for name, tensor in turned.items():
        assert done or torch.equal(tensor, kept[name])
        tensor += 1
        assert torch.equal(mixed[name], kept[name])


def test_the_rate_of_the_published_search() -> None:
    rates = [search_rate(step, 1000, 0.1) for step in (0, 374, 375, 624, 625, 874, 875, 999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_objective_of_a_linear_model_in_closed_form() -> None:
    """g = mean (p - y) x^T and f = W x, in numpy."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    weight = model[1].weight.detach().numpy()
    x, concealing = (normal(2, 1, 2, 2, seed=seed, dtype=torch.float64) for seed in (1, 2))
    labels, proxies = [0, 2], [1, 1]
    rows, others = x.flatten(1).numpy(), concealing.flatten(1).numpy()

    def gradient(inputs: np.ndarray, wanted: list[int]) -> np.ndarray:
        return (softmax(inputs @ weight.T) - np.eye(3)[wanted]).T @ inputs / len(inputs)

    clean, pulled = gradient(rows, labels), gradient(others, proxies)
    cosine = (clean * pulled).sum() / np.linalg.norm(clean) / np.linalg.norm(pulled)
    apart = np.exp(-0.3 * np.linalg.norm(others - rows, axis=1).mean())
    change = np.linalg.norm((others - rows) @ weight.T, axis=1) / np.linalg.norm(rows @ weight.T, axis=1)
    task = concealment(model, x, torch.tensor(labels), torch.tensor(proxies), distance_decay=0.3, output_weight=0.7)
    assert task.objective(concealing).item() == pytest.approx(1 - cosine + apart + 0.7 * change.mean(), rel=1e-12)


def test_the_search_follows_the_objectives_derivative(build: Build) -> None:
    """Through the model's gradient: central differences in double precision."""
    model = build("batch").double()
    x, concealing = (normal(2, 1, 16, 16, seed=seed, dtype=torch.float64) for seed in (1, 2))
    task = concealment(model, x, torch.tensor([0, 1]), torch.tensor([1, 1]), distance_decay=0.1, output_weight=0.5)
    concealing.requires_grad_()
    (slope,) = torch.autograd.grad(task.objective(concealing), concealing)
    for seed in range(3):
        direction = normal(*x.shape, seed=10 + seed, dtype=torch.float64)
        ahead, behind = (task.objective(concealing.detach() + step * direction).item() for step in (1e-5, -1e-5))
        assert (slope * direction).sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-9)


def test_the_search_lowers_the_objective_and_aliases_nothing(build: Build) -> None:
    x, start = normal(3, 1, 16, 16, seed=1), normal(3, 1, 16, 16, seed=2)
    task = concealment(build(), x, torch.tensor([0, 1, 0]), torch.tensor([1, 1, 0]))
    before = start.clone()
    found, steps = task.search(start, steps=30, learning_rate=0.1, distance_limit=math.inf)
    assert steps == 30 and torch.equal(start, before) and found.data_ptr() != start.data_ptr()
    assert task.objective(found) < task.objective(start) - 0.05
    same, none = task.search(start, steps=0, learning_rate=0.1, distance_limit=math.inf)
    assert none == 0 and torch.equal(same, start) and same.data_ptr() != start.data_ptr()


def test_the_search_ends_at_the_distance_limit(build: Build) -> None:
    x = normal(2, 1, 16, 16, seed=1)
    task = concealment(build(), x, torch.tensor([0, 1]), torch.tensor([1, 0]))
    far, steps = task.search(x + 0.01, steps=50, learning_rate=0.1, distance_limit=4.0)
    assert 0 < steps < 50 and image_distance(far, x) > 4.0
    short, _ = task.search(x + 0.01, steps=steps - 1, learning_rate=0.1, distance_limit=4.0)
    assert image_distance(short, x) <= 4.0


@pytest.mark.parametrize(("mixing", "divisor"), [(0.7, 3), (0.0, 2), (1.0, 2)])
def test_the_mixed_gradient_is_that_of_three_losses(build: Build, mixing: float, divisor: int) -> None:
    model = build()
    x, concealing = normal(3, 1, 16, 16, seed=1), normal(3, 1, 16, 16, seed=2)
    labels, proxies = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
    found = concealment(model, x, labels, proxies).mixed_gradients(concealing, labels, mixing)
    expected = {name: torch.zeros_like(tensor) for name, tensor in found.items()}
    for weight, images, wanted in [
        (mixing, concealing, proxies),
        (1 - mixing, concealing, labels),
        (1.0, x, labels),
    ]:
        gradients = torch.autograd.grad(F.cross_entropy(model(images), wanted), list(model.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += weight * gradient / divisor
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_without_mixing_and_search_training_is_plain(local_round: Callable[..., object]) -> None:
    """The concealing image is the image itself, at its own label."""
    plain = local_round(count=4, batch_size=2).update.tensors
    result = local_round(made(mixing=0.0, steps=0), count=4, batch_size=2)
    for name, tensor in result.update.tensors.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-7)
    assert result.measurements == {
        "search_steps": 0.0,
        "distance": 0.0,
        "cosine": pytest.approx(1),
        "turned_share": 0.0,
    }


def test_in_training_something_else_is_sent_which_points_along_the_gradient(local_round: Callable[..., object]) -> None:
    plain = local_round(normalisation="batch").update.tensors
    defense = made(steps=3)
    assert defense.acts_on == {"gradients"}
    result = local_round(defense, normalisation="batch")
    assert result.measurements["search_steps"] == 3 and result.measurements["distance"] > 1
    assert 0 < result.measurements["cosine"] < 0.999
    for name, tensor in result.update.tensors.items():
        # Buffers are those of the clean batch: one forward pass in train mode, none of the defense's.
        assert torch.equal(tensor, plain[name]) == ("running" in name or "num_batches" in name), name


def linear(weight: list[list[float]]) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = torch.tensor(weight), torch.zeros(2)
    return model


def one_step(
    defense: ConcealingSamplesDefense, model: nn.Module, images: Tensor, labels: Tensor, round: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The clean gradient and the sent one, of the round's first step."""
    context = RoundContext(model, model.state_dict(), F.cross_entropy, round, 10, 0.1)
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    clean = dict(zip(names, gradients, strict=True))
    defense.begin_round(context)
    batch = Batch(images, labels, tuple(str(index) for index in range(len(images))))
    return clean, dict(defense.protect_gradients(clean, batch, context))


def test_a_gradient_that_would_point_away_is_turned() -> None:
    """The public image is the private one under the other label, of which the model is far from sure."""
    same = ImageSet(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([1]), ("public/0",))
    model = linear([[0.3] * 4, [0.0] * 4])
    defense = made(images=same, mixing=1.0, steps=0)
    clean, sent = one_step(defense, model, torch.full((1, 1, 2, 2), 2.0), torch.tensor([0]))
    # (p - e0) + (p - e1) = (p1 - p0) (-1, 1), where p - e0 = p1 (-1, 1).
    p1 = 1 / (1 + math.exp(2.4))
    factor = (2 * p1 - 1) / 2 / p1
    square = product(clean, clean)
    v = max(0.5, -factor * square / (square + 1e-3))
    assert factor < 0 and defense.measurements()["turned_share"] == 1
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, (factor + v) * clean[name], rtol=1e-3, atol=1e-6)


def test_the_ratio_of_weight_to_bias_no_longer_gives_the_image_away() -> None:
    """Of one image, a linear layer's gradients leak it exactly; the mixture's ratio is another image."""
    model = linear([[0.1, -0.2, 0.3, 0.4], [0.0, 0.2, -0.1, 0.3]])
    image = normal(1, 1, 2, 2, seed=4)
    clean, sent = one_step(made(images=public(5, side=2), steps=5), model, image, torch.tensor([0]))
    leaks = [tensors["1.weight"][0] / tensors["1.bias"][0] for tensors in (clean, sent)]
    torch.testing.assert_close(leaks[0], image.flatten(), rtol=1e-4, atol=1e-5)
    assert (leaks[1] - image.flatten()).norm() > 0.2 * image.norm()


def test_public_images_are_drawn_anew_at_every_step_and_again_from_the_same_seed() -> None:
    model = linear([[0.1, -0.2, 0.3, 0.4], [0.0, 0.2, -0.1, 0.3]])
    image, label = normal(1, 1, 2, 2, seed=4), torch.tensor([0])

    def steps(seed: int, round: int) -> list[tuple[float, ...]]:
        defense = made(seed, public(40, side=2), steps=1)
        clean, first = one_step(defense, model, image, label, round)
        context = RoundContext(model, model.state_dict(), F.cross_entropy, round, 10, 0.1)
        second = defense.protect_gradients(clean, Batch(image, label, ("0",)), context)
        return [tuple(tensors["1.weight"].flatten().tolist()) for tensors in (first, second)]

    random_state = torch.get_rng_state()
    runs = [steps(seed, round) for seed, round in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert runs[0] == runs[3] and len({sent for run in runs[:3] for sent in run}) == 6
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_model_is_left_as_it_was_and_nothing_is_aliased(build: Build) -> None:
    model = build("batch").train()
    model.features.norm1.eval()
    model.features.conv0.weight.requires_grad_(False)
    model.features.add_module("dropout", nn.Dropout(0.5))
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    trained = {name: torch.ones_like(tensor) for name, tensor in model.named_parameters() if tensor.requires_grad}
    context = RoundContext(model, model.state_dict(), F.cross_entropy, 0, 1, 0.1)
    images = normal(2, 1, 16, 16)
    batch, kept = Batch(images, torch.tensor([0, 1]), ("a", "b")), images.clone()
    results = []
    for _ in range(2):
        defense = made(steps=2)
        defense.begin_round(context)
        with torch.no_grad():
            results.append(defense.protect_gradients(trained, batch, context))
    # Eval mode: dropout draws nothing, and nothing moved between the two.
    assert list(results[0]) == list(trained)
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]) and not tensor.requires_grad
        assert tensor.shape == trained[name].shape and tensor.data_ptr() != trained[name].data_ptr()
        assert torch.equal(trained[name], torch.ones_like(tensor))
    assert torch.equal(images, kept) and not images.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not model.features.conv0.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_may_be_probabilities(build: Build) -> None:
    model, images = build(), normal(2, 1, 16, 16)
    sent = [
        one_step(made(steps=1), model, images, labels)[1]["classifier.weight"]
        for labels in (torch.tensor([0, 1]), torch.eye(2))
    ]
    torch.testing.assert_close(sent[0], sent[1], rtol=1e-3, atol=1e-6)


def test_public_images_that_are_too_few_or_of_other_classes_are_refused(build: Build) -> None:
    with pytest.raises(DefenseError, match=r"has 0 for 1: raise data.public_fraction"):
        made(images=public(0)).check_model(build())
    with pytest.raises(DataError, match=r"the public images of dcs: label 2 .* expected 0 to 1"):
        made(images=public(3, classes=3)).check_model(build())
    made(images=public(1)).check_model(build())
    with pytest.raises(DefenseError, match=r"has 1 for 2: .*smaller batches"):
        one_step(made(images=public(1)), build(), normal(2, 1, 16, 16), torch.tensor([0, 1]))


def test_presets() -> None:
    paper = ConcealingSamplesSettings(**CONCEALING_SAMPLES_PRESETS["paper"])
    assert (paper.mixing, paper.distance_decay, paper.output_weight) == (0.7, 0.01, 0.01)
    assert (paper.steps, paper.learning_rate) == (1000, 0.1)
    weak, strong = (ConcealingSamplesSettings(**CONCEALING_SAMPLES_PRESETS[name]) for name in ("weak", "strong"))
    assert weak.mixing < paper.mixing < strong.mixing and weak.distance_decay < strong.distance_decay

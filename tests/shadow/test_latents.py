"""Step 2: one code an image, found without help from, or harm to, the rest of its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shadow_defense.shadow.latents import invert_latents


def linear(seed: int = 0) -> Tensor:
    return torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def render(z: Tensor) -> Tensor:
    """Entry by entry, so that a batch gives the very numbers that its images give alone."""
    weights = linear()
    return torch.tanh((z.unsqueeze(2) * weights).sum(1)).view(-1, 1, 3, 3)


def problem(count: int = 3) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    images = render(torch.randn(count, 4, generator=draws, dtype=torch.float64))
    return images, torch.randn(count, 4, generator=draws, dtype=torch.float64)


def test_batched_equals_one_by_one() -> None:
    images, initial = problem()
    together = invert_latents(render, images, initial, learning_rate=0.05, iterations=200)
    for index in range(3):
        one = slice(index, index + 1)
        alone = invert_latents(render, images[one], initial[one], learning_rate=0.05, iterations=200)
        assert torch.equal(together.z[one], alone.z)
        assert torch.equal(together.error[one], alone.error)


def test_codes_of_known_images_are_found() -> None:
    """A linear generator, so that there is one minimum: the code that the image was made from."""
    draws = torch.Generator().manual_seed(2)
    wanted, initial = torch.randn(2, 3, 4, generator=draws, dtype=torch.float64)

    def project(z: Tensor) -> Tensor:
        return (z @ linear()).view(-1, 1, 3, 3)

    found = invert_latents(project, project(wanted), initial, learning_rate=0.05, iterations=500, patience=500)
    torch.testing.assert_close(found.z, wanted, rtol=0, atol=0.02)
    torch.testing.assert_close(found.error, (project(found.z - wanted)).square().mean(dim=(1, 2, 3)))


def test_steps_are_those_of_adamw_with_a_fresh_gradient() -> None:
    """AdamW written out for three steps; a gradient that is never cleared gives other codes from step two on."""
    images, initial = problem(1)
    rate, codes = 0.05, [initial]
    z, first, second = initial.clone(), torch.zeros_like(initial), torch.zeros_like(initial)
    for step in (1, 2, 3):
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((render(leaf) - images).square().mean(), leaf)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        z = z * (1 - rate * 0.01)
        z = z - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        codes.append(z)
    seen: list[Tensor] = []

    def noted(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return render(z)

    # The learning rate is halved at iterations 3, 5 and 7 of 8: the first four codes use the full one.
    invert_latents(noted, images, initial, learning_rate=rate, iterations=8)
    for ours, expected in zip(seen[:4], codes, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_the_best_code_is_kept_not_the_last() -> None:
    """At this learning rate AdamW overshoots the minimum at 0 and comes back."""
    errors: list[float] = []

    def identity(z: Tensor) -> Tensor:
        errors.append(float(z.detach().square().mean()))
        return z.view(1, 1, 1, 1)

    found = invert_latents(
        identity, torch.zeros(1, 1, 1, 1), torch.full((1, 1), 0.9), learning_rate=0.5, iterations=30, warm_up=30
    )
    assert errors[-1] > 2 * min(errors)
    assert float(found.error) == pytest.approx(min(errors))
    assert float(found.z.square()) == pytest.approx(min(errors))


def test_early_stop_counts_iterations_without_improvement_after_the_first_fifty() -> None:
    images = torch.zeros(2, 1, 1, 2)

    def constant(z: Tensor) -> Tensor:
        return (z * 0 + 1).view(2, 1, 1, 2)

    found = invert_latents(constant, images, torch.ones(2, 2), iterations=500)
    # Iterations 0 to 49 do not count; 50 to 54 are the five without improvement.
    assert found.iterations == 55


def test_an_image_that_stopped_keeps_its_code_while_others_go_on() -> None:
    """One image cannot improve, the other always does: all iterations run, the first keeps its starting code."""

    def half_frozen(z: Tensor) -> Tensor:
        return (z * torch.tensor([[0.0], [1.0]])).view(2, 1, 1, 1)

    images = torch.tensor([3.0, 3.0]).view(2, 1, 1, 1)
    initial = torch.tensor([[1.0], [0.0]])
    found = invert_latents(half_frozen, images, initial, learning_rate=0.01, iterations=100)
    assert found.iterations == 100
    assert torch.equal(found.z[0], initial[0])
    assert found.z[1] > 0.4


def test_the_caller_keeps_its_tensors_and_gradients() -> None:
    images, initial = problem(1)
    weight = linear().requires_grad_()
    before = initial.clone()
    invert_latents(lambda z: torch.tanh(z @ weight).view(-1, 1, 3, 3), images, initial, learning_rate=0.1, iterations=5)
    assert torch.equal(initial, before)
    assert weight.grad is None

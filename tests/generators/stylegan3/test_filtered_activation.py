"""The filtered activation, compiled and as matrices, against zero-stuffing and whole filters."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.generators.stylegan3.conftest import draw, naive_activation, relative_error
from torch import Tensor

from shadow_defense.generators.stylegan3.filtered_activation import Resampling, filtered_activation
from shadow_defense.generators.stylegan3.filters import low_pass, separable_terms
from shadow_defense.generators.stylegan3.schedule import LayerPlan, plan_layers
from shadow_defense.generators.stylegan3.synthesis import SynthesisLayer

PLANS = {
    f"{configuration}-{size} {plan.name}": plan
    for configuration, kernel in (("T", 3), ("R", 1))
    for size in (32, 64)
    for plan in plan_layers(size, 1, channel_base=64, channel_max=3, kernel=kernel, radial=kernel == 1)[:-1]
}
"""Both factors of up-sampling, growing, equal and shrinking planes, separable and radial filters."""

Case = tuple[Resampling, Tensor, Tensor]


def filters(plan: LayerPlan) -> tuple[Tensor, Tensor]:
    rate = float(plan.inner_rate)
    up = low_pass(plan.up_taps, plan.reads.cutoff, 2 * plan.reads.half_width, rate)
    down = low_pass(plan.down_taps, plan.writes.cutoff, 2 * plan.writes.half_width, rate, radial=plan.radial)
    assert up is not None and down is not None
    return up, down


def case(plan: LayerPlan) -> Case:
    up, down = filters(plan)
    return Resampling.of(plan, up, down, 0, plan.reads.size + plan.kernel - 1), up, down


def little_case(up: int = 2, down: int = 2, inputs: int = 9, outputs: int = 7, before: int = 3) -> Case:
    """Symmetric random filters, the second one of two dimensions."""
    taps = draw(6 * up, seed=1)
    kernel = draw(6 * down, 6 * down, seed=2)
    kernel = kernel + kernel.flip(0)
    kernel = kernel + kernel.flip(1)
    taps, kernel = (taps + taps.flip(0)) / 6, (kernel + kernel.T) / 60
    # The up-sampled plane is just as wide as the outputs need.
    after = (outputs - 1) * down + 6 * down + 6 * up - 1 - inputs * up - before
    terms = separable_terms(taps) * up, separable_terms(kernel)
    return Resampling(*terms, up, down, inputs, outputs, before, after), taps, kernel


def leaves(resampling: Resampling, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, ...]:
    x = draw(2, 3, resampling.inputs, resampling.inputs, seed=3) * scale
    gain, bias = draw(2, 3, seed=4).exp(), draw(3, seed=5) * scale
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (x, gain, bias))


def naive(x: Tensor, gain: Tensor, bias: Tensor, kind: Case) -> Tensor:
    resampling, up, down = kind
    scaled = x * gain[:, :, None, None] + bias[:, None, None]
    factors = resampling.up, resampling.down
    return naive_activation(scaled, up, down, *factors, resampling.before, resampling.after)


def compare(kind: Case, dtype: torch.dtype, tolerance: float, scale: float = 1.0) -> None:
    """Outputs and gradients of x, gain and bias, the naive ones in 64 bits."""
    ours, theirs = leaves(kind[0], dtype, scale), leaves(kind[0], torch.float64, scale)
    output, expected = filtered_activation(*ours, kind[0]), naive(*theirs, kind)
    assert output.dtype == dtype and output.shape == expected.shape
    assert relative_error(output, expected) < tolerance
    gradient = draw(*output.shape, seed=6)
    found = torch.autograd.grad(output, ours, gradient.to(dtype))
    wanted = torch.autograd.grad(expected, theirs, gradient.double())
    for name, one, other in zip(("x", "gain", "bias"), found, wanted, strict=True):
        assert relative_error(one, other) < tolerance, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
@pytest.mark.parametrize("name", ["T-32 L0_36_3", "T-64 L4_52_3", "T-32 L13_32_2", "R-32 L0_36_3", "R-64 L8_84_3"])
def test_layers_of_the_network(name: str, dtype: torch.dtype) -> None:
    # The radial filter's terms below a millionth are left out.
    compare(case(PLANS[name]), dtype, 3e-5 if dtype == torch.float32 else 2e-6)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    up=st.sampled_from([2, 4]),
    down=st.sampled_from([2, 4]),
    inputs=st.integers(5, 20),
    outputs=st.integers(1, 20),
    before=st.integers(-12, 30),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
def test_any_geometry(dtype: torch.dtype, up: int, down: int, inputs: int, outputs: int, before: int) -> None:
    kind = little_case(up, down, inputs, outputs, before)
    # Something of the plane is left after cropping, and some filter reaches it.
    assume(max(0, -before) + max(0, -kind[0].after) < inputs * up)
    assume(before - 6 * up < kind[0].samples)
    compare(kind, dtype, 1e-4 if dtype == torch.float32 else 2e-6)


@pytest.mark.parametrize("factors", [(2, 2), (4, 2), (2, 4)])
def test_gradients_are_those_of_finite_differences(factors: tuple[int, int]) -> None:
    resampling, _, _ = little_case(*factors, inputs=5, outputs=3)
    torch.autograd.gradcheck(lambda *given: filtered_activation(*given, resampling), leaves(resampling, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
def test_clamped_samples_have_no_gradient(dtype: torch.dtype) -> None:
    kind = case(PLANS["T-32 L1_36_3"])
    resampling = kind[0]
    compare(kind, dtype, 1e-4, scale=300)  # Some samples are clamped, others not.
    x = torch.full((1, 1, resampling.inputs, resampling.inputs), 1e4, dtype=dtype).requires_grad_()
    gain, bias = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    output = filtered_activation(x, gain, bias, resampling)
    inside = slice(8, -8)
    torch.testing.assert_close(output[:, :, inside, inside], torch.full_like(output[:, :, inside, inside], 256.0))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert gradient[:, :, inside, inside].eq(0).all()
    # One step below, the gradient is the gain of the leaky ReLU: both filters pass constants, and half the samples.
    (gradient,) = torch.autograd.grad(filtered_activation(x * 1e-2, gain, bias, resampling).sum(), x)
    torch.testing.assert_close(
        gradient[:, :, inside, inside].mean().double(), torch.tensor(2**0.5 * 1e-2).double(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
@pytest.mark.parametrize(("where", "spoilt"), [(0, [1]), (1, [4]), (2, [2, 5])], ids=["x", "gain", "bias"])
def test_nan_comes_through(where: int, spoilt: list[int], dtype: torch.dtype) -> None:
    """Clamping must not turn a diverged training into plausible images; other planes stay as they are."""
    resampling, _, _ = case(PLANS["T-32 L0_36_3"])
    given = [leaf.detach() for leaf in leaves(resampling, dtype)]
    sound = filtered_activation(*given, resampling).flatten(0, 1)
    given[where] = given[where].clone()
    given[where].view(-1)[given[where].numel() // 4 if where == 0 else spoilt[0]] = torch.nan
    output = filtered_activation(*given, resampling).flatten(0, 1)
    assert output.isnan().flatten(1).any(1).nonzero().flatten().tolist() == spoilt
    rest = [plane for plane in range(6) if plane not in spoilt]
    assert torch.equal(output[rest], sound[rest])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
def test_nan_comes_back(dtype: torch.dtype) -> None:
    resampling, _, _ = case(PLANS["T-32 L0_36_3"])
    given = leaves(resampling, dtype)
    output = filtered_activation(*given, resampling)
    gradient = torch.ones_like(output)
    gradient[0, 1, 5, 5] = torch.nan
    to_x, to_gain, to_bias = torch.autograd.grad(output, given, gradient)
    assert to_x.flatten(0, 1).isnan().flatten(1).any(1).tolist() == [False, True, False, False, False, False]
    assert to_gain.isnan().tolist() == [[False, True, False], [False, False, False]]
    assert to_bias.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
def test_without_gradients_the_output_is_the_same(dtype: torch.dtype) -> None:
    resampling, _, _ = case(PLANS["R-32 L5_52_3"])
    given = leaves(resampling, dtype)
    output = filtered_activation(*given, resampling)
    assert output.requires_grad
    with torch.no_grad():
        assert torch.equal(output, filtered_activation(*given, resampling))
    assert torch.equal(output, filtered_activation(*(leaf.detach() for leaf in given), resampling))
    for wanted in range(3):
        alone = [leaf.detach().requires_grad_(index == wanted) for index, leaf in enumerate(given)]
        output = filtered_activation(*alone, resampling)
        (gradient,) = torch.autograd.grad(output.sum(), alone[wanted])
        together = torch.autograd.grad(filtered_activation(*given, resampling).sum(), given[wanted])[0]
        assert torch.equal(gradient, together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
def test_any_layout_in_memory(dtype: torch.dtype) -> None:
    resampling, _, _ = little_case()
    side = resampling.inputs
    row = draw(3, side, side).to(dtype)
    wide = draw(2, 6, 2 * side, side, seed=1).to(dtype)
    layouts = [
        row.expand(2, 3, side, side),
        row.expand(2, 3, side, side).transpose(2, 3),
        wide[:, ::2, ::2],
        wide[:, ::2, ::2].contiguous(memory_format=torch.channels_last),
    ]
    gains = [draw(3).to(dtype).expand(2, 3), draw(3, 2).to(dtype).T]
    bias = draw(6).to(dtype)[::2]
    for layout in layouts:
        for gain in gains:
            assert not (layout.is_contiguous() and gain.is_contiguous())
            odd = [tensor.detach().requires_grad_() for tensor in (layout, gain, bias)]
            plain = [tensor.detach().contiguous().clone().requires_grad_() for tensor in (layout, gain, bias)]
            output, expected = (filtered_activation(*given, resampling) for given in (odd, plain))
            torch.testing.assert_close(output, expected)
            found = torch.autograd.grad(output.sum(), odd)  # An expanded gradient.
            wanted = torch.autograd.grad(expected, plain, torch.ones_like(expected))
            torch.testing.assert_close(found, wanted)


def everything(resampling: Resampling) -> tuple[Tensor, ...]:
    given = leaves(resampling)
    output = filtered_activation(*given, resampling)
    return output.detach(), *torch.autograd.grad(output.square().sum(), given)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_does_not_matter(two_threads: None) -> None:
    resampling, _, _ = case(PLANS["R-32 L1_36_3"])
    results = []
    for threads in (2, 1, 7):
        torch.set_num_threads(threads)
        results.append(everything(resampling))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_several_callers_at_once(two_threads: None) -> None:
    kinds = [case(PLANS[name])[0] for name in ("T-32 L0_36_3", "R-32 L5_52_3", "T-32 L13_32_2")] * 4
    alone = [everything(resampling) for resampling in kinds]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(everything, kinds))
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(two_threads: None) -> None:
    resampling, _, _ = case(PLANS["T-32 L0_36_3"])
    given = tuple(leaf.detach() for leaf in leaves(resampling))
    expected = filtered_activation(*given, resampling)  # The parent's threads exist now.

    def child() -> None:
        torch.testing.assert_close(filtered_activation(*given, resampling), expected, rtol=0, atol=0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    hung = process.is_alive()
    if hung:
        process.kill()
    assert not hung and process.exitcode == 0


def kept_bytes(plan: LayerPlan) -> tuple[int, int]:
    """Bytes kept for the backward pass besides x and the gains, and number of up-sampled samples."""
    layer = SynthesisLayer(plan, 8, 0.999)
    assert layer.up_filter is not None and layer.down_filter is not None
    inputs = layer.window[1] - layer.cropped
    resampling = Resampling.of(plan, layer.up_filter, layer.down_filter, layer.cropped, inputs)
    given = leaves(resampling)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = filtered_activation(*given, resampling)
    assert output.requires_grad
    own = {leaf.data_ptr() for leaf in given}
    new = sum(tensor.untyped_storage().nbytes() for tensor in kept if tensor.data_ptr() not in own)
    return new, output.shape[0] * output.shape[1] * resampling.samples**2


@pytest.mark.parametrize("configuration", ["T-32", "T-64", "R-32", "R-64"])
def test_what_is_kept_for_the_backward_pass(configuration: str) -> None:
    """A byte for each up-sampled sample and some filling, where automatic differentiation keeps 12 bytes."""
    kept = [kept_bytes(plan) for name, plan in PLANS.items() if name.startswith(configuration)]
    assert all(1 <= new / samples <= 1.45 for new, samples in kept)
    assert sum(new for new, _ in kept) <= 1.3 * sum(samples for _, samples in kept)


def test_second_derivatives_are_refused_and_not_zero() -> None:
    resampling, _, _ = little_case()
    x, gain, bias = leaves(resampling)
    (gradient,) = torch.autograd.grad(
        filtered_activation(x, gain, bias, resampling).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shadow_defense.generators.stylegan3 import winograd
from shadow_defense.generators.stylegan3.winograd import MAX_COLUMNS, convolve, faster
from shadow_defense.generators.stylegan3.winograd_layout import filter_transform
from shadow_defense.seeds import named_generator

TOLERANCE = 5e-6


def drawn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=named_generator(3, name))


def distance(value: Tensor, reference: Tensor, terms: Tensor | None = None) -> float:
    """Relative to the reference, or to a tenth of the sum of its terms' magnitudes where the terms cancel to less."""
    least = 0.0 if terms is None else 0.1 * terms.norm()
    return ((value.double() - reference).norm() / max(reference.norm(), least)).item()


def doubled(x: Tensor, weight: Tensor, padding: int, outer: Tensor) -> tuple[Tensor, Tensor, int, Tensor]:
    return x.double(), weight.double(), padding, outer.double()


def gradients(x: Tensor, weight: Tensor, padding: int, outer: Tensor, function=convolve) -> tuple[Tensor, ...]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(function(x, weight, padding=padding), (x, weight), outer)


channels = st.one_of(st.integers(1, 9), st.integers(32, 40))


@settings(max_examples=60)
@given(st.integers(1, 3), channels, channels, st.integers(3, 23), st.integers(3, 23), st.integers(0, 2), st.booleans())
def test_equal_to_the_direct_convolution(n, i, o, h, w, padding, strided):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "MIN_CHANNELS", 1)
        patch.setattr(winograd, "CHUNK", 20)
        x = drawn(n, i, w, h).transpose(2, 3) if strided else drawn(n, i, h, w)
        weight = drawn(3, 3, i, o, name="w").permute(3, 2, 0, 1) if strided else drawn(o, i, 3, 3, name="w")
        assert faster(x, weight, padding)
        reference = F.conv2d(x.double(), weight.double(), padding=padding)
        outer = drawn(*reference.shape, name="g")
        outer = outer.transpose(2, 3).contiguous().transpose(2, 3) if strided else outer
        made, expected = gradients(x, weight, padding, outer), gradients(*doubled(x, weight, padding, outer), F.conv2d)
        sizes = gradients(*doubled(x.abs(), weight.abs(), padding, outer.abs()), F.conv2d)
        terms = F.conv2d(x.double().abs(), weight.double().abs(), padding=padding)
        assert distance(convolve(x, weight, padding), reference, terms) < TOLERANCE
        for value, truth, size in zip(made, expected, sizes, strict=True):
            assert value.shape == truth.shape
            assert distance(value, truth, size) < TOLERANCE


def test_planes_of_more_tiles_than_a_block_holds():
    x, weight = drawn(2, 48, 61, 300), drawn(49, 48, 3, 3, name="w")
    assert MAX_COLUMNS > (300 + 2) // 4 and faster(x, weight, 1)
    outer = drawn(2, 49, 61, 300, name="g")
    assert distance(convolve(x, weight, 1), F.conv2d(x.double(), weight.double(), padding=1)) < TOLERANCE
    expected = gradients(x.double(), weight.double(), 1, outer.double(), F.conv2d)
    for value, truth in zip(gradients(x, weight, 1, outer), expected, strict=True):
        assert distance(value, truth) < TOLERANCE


def test_filter_transform_gives_the_values_of_the_polynomial():
    # Row k times the product of differences is g(x_k) = g0 + g1 x_k + g2 x_k^2; by hand for x = 3/4 and 0.
    value = filter_transform() @ np.array([1.0, 2.0, 4.0])
    assert value[0] == pytest.approx(1 / (0.75**2 * 1.5**2))
    assert value[1] == pytest.approx((1 + 1.5 + 2.25) / (0.75 * 1.5 * (0.75 - 1.5) * (0.75 + 1.5)))
    assert value[5] == 4.0


@pytest.mark.parametrize(
    ("x", "weight", "padding"),
    [
        (drawn(1, 48, 9, 9).double(), drawn(48, 48, 3, 3).double(), 1),
        (drawn(1, 48, 9, 9), drawn(48, 48, 1, 1), 0),
        (drawn(1, 8, 9, 9), drawn(48, 8, 3, 3), 1),
        (drawn(1, 48, 9, 9), drawn(48, 48, 3, 3), 3),
        (drawn(0, 48, 9, 9), drawn(48, 48, 3, 3), 1),
        (drawn(1, 48, 3, 400), drawn(48, 48, 3, 3), 1),
    ],
)
def test_everything_else_is_the_direct_convolution(x, weight, padding):
    assert not faster(x, weight, padding)
    assert torch.equal(convolve(x, weight, padding), F.conv2d(x, weight, padding=padding))


def test_results_do_not_depend_on_the_number_of_threads():
    x, weight, outer = drawn(3, 48, 17, 22), drawn(56, 48, 3, 3, name="w"), drawn(3, 56, 19, 24, name="g")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((convolve(x, weight, 2), *gradients(x, weight, 2, outer)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(
            torch.allclose(a, b, rtol=1e-5, atol=1e-5 * b.abs().max()) for a, b in zip(other, results[0], strict=True)
        )


def test_nan_comes_through():
    x, weight, outer = drawn(2, 48, 12, 12), drawn(48, 48, 3, 3, name="w"), drawn(2, 48, 12, 12, name="g")
    x[1, 5, 6, 7] = torch.nan
    direct = F.conv2d(x, weight, padding=1).isnan()
    assert convolve(x, weight, 1)[direct].isnan().all()
    assert convolve(x, weight, 1)[0].isfinite().all()
    assert gradients(x, weight, 1, outer)[1][:, 5].isnan().all()


@pytest.mark.parametrize(("to_x", "to_weight"), [(True, False), (False, True), (True, True)])
def test_keeps_only_what_the_wanted_gradients_need(to_x, to_weight):
    x, weight = drawn(1, 48, 8, 8).requires_grad_(to_x), drawn(48, 48, 3, 3).requires_grad_(to_weight)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: None):
        convolve(x, weight, 1)
    wanted = ([x.data_ptr()] if to_weight else []) + ([weight.data_ptr()] if to_x else [])
    assert kept == wanted


def test_works_as_a_function_of_its_parameters():
    layer = torch.nn.Conv2d(48, 48, 3, padding=1, bias=False)
    layer.forward = lambda x: convolve(x, layer.weight, 1)
    x, weight = drawn(2, 48, 9, 9), drawn(48, 48, 3, 3, name="w").requires_grad_()
    output = torch.func.functional_call(layer, {"weight": weight}, x)
    assert distance(output, F.conv2d(x.double(), weight.double(), padding=1).detach()) < TOLERANCE
    assert torch.autograd.grad(output.sum(), weight)[0].shape == weight.shape


def test_differentiating_twice_is_refused():
    x, weight = drawn(1, 48, 8, 8).requires_grad_(), drawn(48, 48, 3, 3, name="w").requires_grad_()
    (first,) = torch.autograd.grad(convolve(x, weight, 1).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()

"""Layers of the synthesis network, against a convolution whose weights each sample has for itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.generators.stylegan3.conftest import draw, little_generator, naive_activation, relative_error
from torch import Tensor

from shadow_defense.generators.stylegan3.fourier_input import FourierInput
from shadow_defense.generators.stylegan3.schedule import Band, LayerPlan, plan_layers
from shadow_defense.generators.stylegan3.synthesis import SynthesisLayer

PLANS = {
    f"{configuration} {plan.name}": plan
    for configuration, kernel in (("T", 3), ("R", 1))
    for plan in plan_layers(32, 3, channel_base=96, channel_max=5, kernel=kernel, radial=kernel == 1)
}
CHOSEN = ["T L0_36_5", "T L5_52_5", "T L13_32_3", "T L14_32_3", "R L5_52_5", "R L11_52_4", "R L13_32_3"]


def layer_of(plan: LayerPlan) -> SynthesisLayer:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layer = SynthesisLayer(plan, 6, 0.9)
        layer.bias.data.normal_()
        layer.affine.bias.data.normal_()
        layer.magnitude_ema.fill_(1.7)
    return layer


def naive_layer(layer: SynthesisLayer, x: Tensor, w: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """The specification's section 5, steps 2 to 4, word by word."""
    plan, n = layer.plan, len(x)
    outputs, inputs, side, _ = parameters["weight"].shape
    style = w @ (parameters["affine.weight"] / math.sqrt(w.shape[1])).T + parameters["affine.bias"]
    weight, bias = parameters["weight"], parameters["bias"]
    if not plan.to_image:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        style = style * style.square().mean().rsqrt()
    own = weight[None] * style[:, None, :, None, None]
    if plan.to_image:
        own = own / math.sqrt(inputs * side * side)
    else:
        own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = (x * layer.magnitude_ema.double().rsqrt()).flatten(0, 1)[None]
    y = F.conv2d(x, own.flatten(0, 1), padding=side - 1, groups=n).unflatten(1, (n, outputs))[0]
    y = y + bias[:, None, None]
    if plan.to_image:
        return y.clamp(-256, 256)
    assert layer.up_filter is not None and layer.down_filter is not None
    return naive_activation(y, layer.up_filter, layer.down_filter, plan.up, plan.down, *plan.padding)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "matrices"])
@pytest.mark.parametrize("name", CHOSEN)
def test_a_layer_is_a_modulated_convolution_and_an_activation(name: str, dtype: torch.dtype) -> None:
    plan = PLANS[name]
    layer = layer_of(plan)
    x, w = draw(3, plan.reads.channels, plan.reads.size, plan.reads.size), draw(3, 6, seed=1)
    reference = {key: value.detach().double().requires_grad_() for key, value in layer.named_parameters()}
    there = [x.double().requires_grad_(), w.double().requires_grad_()]
    expected = naive_layer(layer, *there, reference)
    layer = layer.to(dtype)
    here = [x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()]
    output = layer(*here)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-6
    assert output.shape == (3, plan.writes.channels, plan.writes.size, plan.writes.size)
    assert relative_error(output, expected) < tolerance
    gradient = draw(*output.shape, seed=2)
    found = torch.autograd.grad(output, [*here, *layer.parameters()], gradient.to(dtype))
    wanted = torch.autograd.grad(expected, [*there, *reference.values()], gradient.double())
    for key, one, other in zip(["x", "w", *reference], found, wanted, strict=True):
        assert relative_error(one, other) < tolerance, key


@pytest.mark.parametrize("name", CHOSEN)
def test_samples_are_styled_alike_in_any_batch(name: str) -> None:
    """The style's normalisation is over the batch, but demodulation undoes it."""
    plan = PLANS[name]
    layer = layer_of(plan)
    x, w = draw(3, plan.reads.channels, plan.reads.size, plan.reads.size), draw(3, 6, seed=1)
    w[2] *= 10
    with torch.no_grad():
        together, alone = layer(x, w), torch.cat([layer(x[i : i + 1], w[i : i + 1]) for i in range(3)])
    assert relative_error(together, alone) < 1e-4


@pytest.mark.parametrize("name", ["T L0_36_5", "R L5_52_5"])
def test_a_style_near_zero_fades(name: str) -> None:
    """Where the 1e-8 under the root counts: a style of 1e-5 beside styles of 1."""
    plan = PLANS[name]
    layer = layer_of(plan)
    layer.affine.bias.data.zero_()
    x, w = draw(2, plan.reads.channels, plan.reads.size, plan.reads.size), draw(2, 6, seed=1)
    w[1] *= 1e-5
    parameters = {key: value.detach().double() for key, value in layer.named_parameters()}
    with torch.no_grad():
        output, expected = layer(x, w), naive_layer(layer, x.double(), w.double(), parameters)
        unstyled = layer(x, torch.stack([w[0], torch.zeros(6)]))
    assert relative_error(output[1], expected[1]) < 1e-4
    assert relative_error(output[1], unstyled[1]) > 0.01


@pytest.mark.parametrize("name", [name for name in PLANS if not PLANS[name].to_image])
def test_what_is_cropped_later_is_rightly_left_out(name: str) -> None:
    plan = PLANS[name]
    layer, whole = layer_of(plan), layer_of(plan)
    whole.cropped, whole.window = 0, (1 - plan.kernel, plan.reads.size + plan.kernel - 1)
    x, w = draw(1, plan.reads.channels, plan.reads.size, plan.reads.size), draw(1, 6, seed=1)
    assert (layer.cropped > 0) == (plan.padding[0] < 0)
    with torch.no_grad():
        assert relative_error(layer(x, w), whole(x, w)) < 1e-6


def test_the_magnitude_moves_before_it_is_used() -> None:
    plan = PLANS["T L0_36_5"]
    layer = layer_of(plan)
    x, w = draw(2, plan.reads.channels, plan.reads.size, plan.reads.size) * 3, draw(2, 6, seed=1)
    before = layer(x, w)
    assert float(layer.magnitude_ema) == pytest.approx(1.7)
    layer(x, w, update_averages=True)
    assert float(layer.magnitude_ema) == pytest.approx(0.9 * 1.7 + 0.1 * float(x.square().mean()), rel=1e-5)
    after = layer(x, w, update_averages=True)
    parameters = {key: value.detach().double() for key, value in layer.named_parameters()}
    assert relative_error(after, naive_layer(layer, x.double(), w.double(), parameters)) < 1e-4
    assert relative_error(after, before) > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("configuration", [{}, {"kernel": 1, "radial": True}], ids=["T", "R"])
def test_features_lead_to_the_same_image(configuration: dict[str, int]) -> None:
    """The road of attacks that search the features of a layer."""
    synthesis = little_generator(**configuration).synthesis
    ws = draw(2, synthesis.styles, 12)
    assert synthesis.styles == 16
    with torch.no_grad():
        image = synthesis(ws)
        for layer in (0, 1, 5, 13, 14):
            x = synthesis.features(ws, layer)
            band = synthesis.plans[layer].reads
            assert x.shape == (2, band.channels, band.size, band.size)
            assert torch.equal(synthesis.from_features(x, ws, layer), image)
            # Styles of the layers that were passed are not read again.
            assert torch.equal(synthesis.from_features(x, ws.index_fill(1, torch.arange(layer + 1), 0), layer), image)
            assert not torch.equal(synthesis.from_features(x + 0.1, ws, layer), image)


@pytest.mark.slow
def test_each_style_is_read_by_its_layer_alone() -> None:
    synthesis = little_generator().synthesis
    ws = draw(1, 16, 12)
    with torch.no_grad():
        before = [synthesis.features(ws, layer) for layer in range(16)]
        for changed in (0, 8, 15):
            other = ws.clone()
            other[:, changed] += 1
            alike = [torch.equal(synthesis.features(other, layer), before[layer]) for layer in range(16)]
            # Style 0 is the input's, style k + 1 that of layer k, whose outcome is what layer k + 1 reads.
            assert alike == [layer < changed for layer in range(16)]


def test_the_input_is_made_of_the_sines_of_the_formula() -> None:
    """Section 4 of the specification for one place at a time, with a transform of the user's."""
    network = little_generator().synthesis.input.double()
    network.transform = torch.tensor([[0.9, -0.3, 0.07], [0.2, 1.2, -0.11], [0, 0, 1]], dtype=torch.float64)
    w = draw(2, 12).double()
    features = network(w)
    band = network.band
    turns = w @ (network.affine.weight / math.sqrt(12)).T + network.affine.bias
    for n, row, column in [(0, 0, 0), (1, 3, 30), (0, 35, 17)]:
        cosine, sine, right, down = (turns[n] / turns[n, :2].norm()).tolist()
        # The placement maps the output's place to that of the unmoved waves.
        rotation = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
        translation = torch.tensor([[1, 0, -right], [0, 1, -down], [0, 0, 1]], dtype=torch.float64)
        placed = rotation @ translation @ network.transform
        x, y = ((index + 0.5 - band.size / 2) / band.rate for index in (column, row))
        place = placed @ torch.tensor([x, y, 1], dtype=torch.float64)
        waves = (2 * math.pi * (network.freqs @ place[:2] + network.phases)).sin()
        lengths = (network.freqs @ placed[:2, :2]).norm(dim=1)
        fading = (1 - (lengths - band.cutoff) / (band.rate / 2 - band.cutoff)).clamp(0, 1)
        expected = network.weight @ (waves * fading) / math.sqrt(band.channels)
        torch.testing.assert_close(features[n, :, row, column], expected)


def test_waves_fade_out_towards_the_nyquist_rate() -> None:
    network = little_generator().synthesis.input
    w = draw(1, 12)
    with torch.no_grad():
        for scale, alive in ((1.0, True), (100.0, False)):
            network.transform = torch.diag(torch.tensor([scale, scale, 1.0]))
            network.freqs.copy_(F.normalize(network.freqs, dim=1))
            assert bool(network(w).abs().max() > 0) == alive


def test_frequencies_are_uniform_in_a_disc() -> None:
    """A quarter of them lies within half of the radius."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        frequencies = FourierInput(1, Band(channels=2000, size=36, rate=16, cutoff=2.0, half_width=6.0)).freqs
    radii = frequencies.norm(dim=1)
    assert float(radii.max()) <= 2.0
    for share in (0.25, 0.5, 0.9):
        assert float((radii < 2 * math.sqrt(share)).float().mean()) == pytest.approx(share, abs=0.03)
    assert frequencies.mean(0).abs().max() < 0.1

"""The discriminator against a naive reference in the order of the formulas, hand-computed numbers, differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shadow_defense.generators.adversarial import r1_penalty
from shadow_defense.generators.stylegan3.discriminator import StyleGAN3Discriminator, append_deviation
from shadow_defense.seeds import named_generator


def naive_blur(x: Tensor, margin: int) -> Tensor:
    x = F.pad(x, (margin,) * 4)
    height, width = x.shape[2] - 3, x.shape[3] - 3
    binomial, total = (1, 3, 3, 1), torch.zeros_like(x[:, :, :height, :width])
    for row in range(4):
        for column in range(4):
            weight = binomial[row] * binomial[column] / 64
            total = total + weight * x[:, :, row : row + height, column : column + width]
    return total


def naive_convolution(state: dict[str, Tensor], name: str, x: Tensor, clamp: float | None, gain: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"]
    _, inputs, side, _ = weight.shape
    kind = name.rsplit(".", 1)[1]
    if kind == "skip":
        y = F.conv2d(naive_blur(x, 1)[:, :, ::2, ::2], weight / math.sqrt(inputs))
        return y * gain
    scaled = weight / math.sqrt(inputs * side**2)
    y = (
        F.conv2d(naive_blur(x, 2), scaled)[:, :, ::2, ::2]
        if kind == "conv1"
        else F.conv2d(x, scaled, padding=side // 2)
    )
    y = y + state[f"{name}.bias"].view(1, -1, 1, 1)
    y = torch.where(y > 0, y, 0.2 * y) * math.sqrt(2) * gain
    return y if clamp is None else y.clamp(-clamp * gain, clamp * gain)


def naive_dense(state: dict[str, Tensor], name: str, x: Tensor, multiplier: float = 1.0, leaky: bool = True) -> Tensor:
    weight = state[f"{name}.weight"]
    y = x @ (weight * multiplier / math.sqrt(weight.shape[1])).T + state[f"{name}.bias"] * multiplier
    return torch.where(y > 0, y, 0.2 * y) * math.sqrt(2) if leaky else y


def naive_deviation(x: Tensor) -> Tensor:
    """Sample by sample: the images whose numbers differ from i's by multiples of n / G."""
    count = len(x)
    stride = count // min(4, count)
    values = []
    for index in range(count):
        group = x[index % stride :: stride]
        spread = ((group - group.mean(dim=0)) ** 2).mean(dim=0)
        values.append((spread + 1e-8).sqrt().mean())
    channel = torch.stack(values).view(count, 1, 1, 1) * torch.ones_like(x[:, :1])
    return torch.cat([x, channel], dim=1)


def naive_logits(
    state: dict[str, Tensor], side: int, images: Tensor, c: Tensor | None = None, clamp: float | None = None
) -> Tensor:
    x = naive_convolution(state, f"b{side}.fromrgb", images, clamp)
    while side > 4:
        block, half = f"b{side}", math.sqrt(0.5)
        y = naive_convolution(state, f"{block}.conv0", x, clamp)
        y = naive_convolution(state, f"{block}.conv1", y, clamp, half)
        x = y + naive_convolution(state, f"{block}.skip", x, clamp, half)
        side //= 2
    x = naive_convolution(state, "b4.conv", naive_deviation(x), clamp)
    out = naive_dense(state, "b4.out", naive_dense(state, "b4.fc", x.flatten(1)), leaky=False)
    if c is None:
        return out[:, 0]
    direction = naive_dense(state, "mapping.embed", c, leaky=False)
    direction = direction / (direction.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for index in range(8):
        direction = naive_dense(state, f"mapping.fc{index}", direction, multiplier=0.01)
    return (out * direction).sum(dim=1) / math.sqrt(out.shape[1])


def little_discriminator(side: int = 16, channels: int = 1, **keywords: float) -> StyleGAN3Discriminator:
    """In float64, with random biases, so that no term is idle."""
    discriminator = StyleGAN3Discriminator(
        img_resolution=side, img_channels=channels, channel_base=64, channel_max=6, **keywords
    ).double()
    draws = named_generator(0, "discriminator", side, channels)
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            # Those of the mapping have weights of 1 / multiplier.
            size = 100.0 if name.startswith("mapping.fc") else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64) * size)
    return discriminator


def little_images(count: int, side: int = 16, channels: int = 1) -> Tensor:
    shape = (count, channels, side, side)
    return torch.rand(shape, generator=named_generator(1, "images", count), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("side", "channels"), [(8, 3), (16, 1), (32, 3)])
def test_logits_are_the_naive_ones(count: int, side: int, channels: int) -> None:
    discriminator, images = little_discriminator(side, channels), little_images(count, side, channels)
    expected = naive_logits(discriminator.state_dict(), side, images)
    assert expected.abs().min() > 1e-3
    # The filter is stored in float32, which holds it exactly.
    torch.testing.assert_close(discriminator(images).detach(), expected, rtol=1e-9, atol=1e-9)


def test_conditional_logits_are_the_naive_ones() -> None:
    discriminator, images = little_discriminator(c_dim=3), little_images(4)
    c = torch.eye(3, dtype=torch.float64)[[0, 2, 1, 0]]
    logits = discriminator(images, c).detach()
    torch.testing.assert_close(logits, naive_logits(discriminator.state_dict(), 16, images, c), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits, discriminator(images, c.flip(0)).detach())


def test_clamped_logits_are_the_naive_ones() -> None:
    clamped, free, images = little_discriminator(conv_clamp=0.5), little_discriminator(), little_images(4)
    expected = naive_logits(clamped.state_dict(), 16, images, clamp=0.5)
    torch.testing.assert_close(clamped(images).detach(), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected, free(images).detach(), rtol=1e-2)


def test_minibatch_deviation_by_hand() -> None:
    """Eight images in groups {0, 2, 4, 6} and {1, 3, 5, 7}: variances of 1, 3, 1, 3 are 1; of 0, 0, 0, 8 are 12."""
    images = torch.tensor([1.0, 0, 3, 0, 1, 0, 3, 8], dtype=torch.float64).view(8, 1, 1, 1)
    deviation = append_deviation(images)[:, 1].flatten()
    expected = torch.tensor([1.0, math.sqrt(12)] * 4, dtype=torch.float64)
    torch.testing.assert_close(deviation, expected, rtol=1e-7, atol=0)
    # The mean over channels and pixels is of deviations, not of variances: 1 and 3 here.
    two = torch.tensor([[0.0, 0.0], [2.0, 6.0]], dtype=torch.float64).view(2, 2, 1, 1)
    torch.testing.assert_close(append_deviation(two)[:, 2].flatten(), torch.full((2,), 2.0, dtype=torch.float64))
    # A part of the features each: deviations of 1 and 3.
    parts = append_deviation(two, channels=2)[:, 2:].flatten()
    torch.testing.assert_close(parts, torch.tensor([1.0, 3.0, 1.0, 3.0], dtype=torch.float64))
    assert append_deviation(two, channels=0) is two
    # Groups {0, 4}, {1, 5}, {2, 6} and {3, 7} of two; all eight in one: variance 52 / 8.
    pairs = append_deviation(images, 2)[:, 1].flatten()
    expected = torch.tensor([0.0, 0, 0, 4] * 2, dtype=torch.float64)
    torch.testing.assert_close(pairs, expected, rtol=0, atol=1.1e-4)
    whole = append_deviation(images, None)[:, 1].flatten()
    torch.testing.assert_close(whole, torch.full((8,), math.sqrt(6.5), dtype=torch.float64))
    assert torch.equal(append_deviation(images, 8), append_deviation(images, None))
    # One image differs from none; the 1e-8 stays.
    assert append_deviation(images[:1])[0, 1].item() == pytest.approx(1e-4)


def test_r1_against_finite_differences() -> None:
    """The derivative of the penalty along a random change of the parameters: double backward through every layer."""
    discriminator, real = little_discriminator(8, 1), little_images(4, 8)
    parameters = list(discriminator.parameters())
    draws = named_generator(2, "direction")
    change = [torch.randn(p.shape, generator=draws, dtype=torch.float64) for p in parameters]

    def penalty_after(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, change, strict=True):
                parameter.add_(direction, alpha=step)
        value = r1_penalty(discriminator, real).item()
        with torch.no_grad():
            for parameter, direction in zip(parameters, change, strict=True):
                parameter.sub_(direction, alpha=step)
        return value

    gradients = torch.autograd.grad(r1_penalty(discriminator, real), parameters, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, change, strict=True) if g is not None)
    step = 1e-7
    measured = (penalty_after(step) - penalty_after(-step)) / (2 * step)
    assert slope == pytest.approx(measured, rel=1e-5)

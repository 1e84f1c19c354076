"""The discriminator of StyleGAN3's training: StyleGAN2's residual network (docs/generators.md)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.stylegan3.condition import ConditionMapping
from shadow_defense.generators.stylegan3.linear import LEAKY_GAIN, LEAKY_SLOPE, Activation, FullyConnected

DEVIATION_GROUP = 4
"""Images whose features are compared by the minibatch standard deviation."""

RESIDUAL_GAIN = math.sqrt(0.5)
"""Of each branch of a block, so that their sum has the variance of one."""


def binomial_filter() -> Float[Tensor, "4 4"]:
    """The blur before every halving: ``outer(b, b) / 64`` with ``b = [1, 3, 3, 1]``, of sum 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


def check_batch_size(count: int, group: int | None = DEVIATION_GROUP) -> None:
    """Raise :class:`GeneratorError` unless ``count`` images fall into groups of ``min(group, count)``; None: in one.

    >>> check_batch_size(3), check_batch_size(8)
    (None, None)
    """
    group = group or max(count, 1)
    if count < 1 or count % min(group, count):
        below = count - count % group
        hint = f"{below} or {below + group}" if below else str(group)
        raise GeneratorError(
            f"StyleGAN3's discriminator was given a batch of {count} images: expected fewer than {group} or a multiple "
            f"of {group}; set generator.batch_size to {hint}"
        )


def append_deviation(
    x: Float[Tensor, "n c h w"], group: int | None = DEVIATION_GROUP, channels: int = 1
) -> Float[Tensor, "n c+{channels} h w"]:
    """Append the minibatch standard deviation, which shows a discriminator that fakes resemble each other.

    Image i is in group ``i mod (n / G)`` of ``G = min(group, n)`` images. The features are cut into ``channels`` equal
    parts; each new channel is, for the whole group, the mean over a part's channels and pixels of
    ``sqrt(var_group(x) + 1e-8)``, the variance being the biased one.

    Raises:
        GeneratorError: when n is no multiple of G.

    >>> x = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)
    >>> append_deviation(x)[:, 1].flatten().tolist()
    [2.0, 2.0]
    """
    count, _, height, width = x.shape
    check_batch_size(count, group)
    if channels == 0:
        return x
    size = min(group or count, count)
    variance = x.unflatten(0, (size, count // size)).var(dim=0, correction=0)
    deviation = (variance + 1e-8).sqrt().unflatten(1, (channels, -1)).mean(dim=(2, 3, 4))
    return torch.cat([x, deviation.repeat(size, 1)[:, :, None, None].expand(-1, -1, height, width)], dim=1)


class Convolution(nn.Module):
    """``y = clamp(gain act(conv(blur(x), W / sqrt(I k^2)) + b), +-clamp gain)``, halving the side when ``halve``.

    ``resample_filter`` is there in every layer, as in the official files, and used by those that halve: a 3x3 kernel
    runs with stride 2 on the blurred features, a 1x1 kernel on every second of them.

    Args:
        gain: applied after the activation, whose own gain (sqrt(2) for lrelu) comes on top.
        clamp: greatest magnitude of the activations before ``gain``; None for none.
    """

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        bias: bool = True,
        activation: Activation = "lrelu",
        gain: float = 1.0,
        halve: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.kernel, self.activation, self.halve = kernel, activation, halve
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("resample_filter", binomial_filter())
        # leaky(a x) = a leaky(x) for a > 0: all gains go into the weights, and no pass over the features is spent.
        self.bias_gain = gain * (LEAKY_GAIN if activation == "lrelu" else 1.0)
        self.weight_gain = self.bias_gain / math.sqrt(inputs * kernel**2)
        self.limit = None if clamp is None else clamp * gain

    def forward(self, x: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs h_out w_out"]:
        padding, stride = self.kernel // 2, 1
        if self.halve:
            # The 1x1 kernel commutes with dropping samples: blur only those that stay.
            margin, blur_stride, stride = (2, 1, 2) if self.kernel == 3 else (1, 2, 1)
            taps = self.resample_filter.expand(x.shape[1], 1, -1, -1)
            x, padding = F.conv2d(x, taps, stride=blur_stride, padding=margin, groups=x.shape[1]), 0
        bias = None if self.bias is None else self.bias * self.bias_gain
        y = F.conv2d(x, self.weight * self.weight_gain, bias, stride=stride, padding=padding)
        if self.activation == "lrelu":
            y = F.leaky_relu(y, LEAKY_SLOPE)
        return y if self.limit is None else y.clamp(-self.limit, self.limit)


class ResidualBlock(nn.Module):
    """``skip(x) + conv1(conv0(x))`` at half the side; the first block turns images into features before that."""

    resample_filter: Tensor

    def __init__(self, image_channels: int | None, inputs: int, outputs: int, clamp: float | None) -> None:
        super().__init__()
        # Unused; the official files have it.
        self.register_buffer("resample_filter", binomial_filter())
        self.fromrgb = None if image_channels is None else Convolution(image_channels, inputs, 1, clamp=clamp)
        self.conv0 = Convolution(inputs, inputs, 3, clamp=clamp)
        self.conv1 = Convolution(inputs, outputs, 3, halve=True, gain=RESIDUAL_GAIN, clamp=clamp)
        self.skip = Convolution(inputs, outputs, 1, halve=True, gain=RESIDUAL_GAIN, bias=False, activation="linear")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h/2 w/2"]:
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        return self.skip(x) + self.conv1(self.conv0(x))


class Epilogue(nn.Module):
    """4 x 4 features to ``outputs`` numbers an image, by way of the minibatch standard deviation."""

    def __init__(
        self, channels: int, outputs: int, clamp: float | None, group: int | None, deviation_channels: int
    ) -> None:
        super().__init__()
        self.group, self.deviation_channels = group, deviation_channels
        self.conv = Convolution(channels + deviation_channels, channels, 3, clamp=clamp)
        self.fc = FullyConnected(channels * 16, channels, activation="lrelu")
        self.out = FullyConnected(channels, outputs)

    def forward(self, x: Float[Tensor, "n c 4 4"]) -> Float[Tensor, "n outputs"]:
        return self.out(self.fc(self.conv(append_deviation(x, self.group, self.deviation_channels)).flatten(1)))


class StyleGAN3Discriminator(nn.Module):
    """Images in [-1, 1] to one logit each; ``state_dict`` has the official names, order and shapes.

    A layer at side r has ``min(channel_base // r, channel_max)`` channels. With a condition the logit is
    ``sum(out(x) direction(c)) / sqrt(channels at 4 px)``.

    Args:
        img_resolution: side of the images in pixels, a power of two of at least 8.
        img_channels: 1 or 3 in this project.
        c_dim: length of the condition; 0 for none.
        conv_clamp: greatest magnitude of the activations: None in float32, 256 where half precision could overflow.
        deviation_group: images compared by the minibatch standard deviation; None: the whole batch.
        deviation_channels: channels that it adds, one for each equal part of the features; 0: none.

    Raises:
        GeneratorError: for another side, a channel_base that leaves the first layer without channels, or
            deviation_channels that do not divide the features.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        c_dim: int = 0,
        conv_clamp: float | None = None,
        deviation_group: int | None = DEVIATION_GROUP,
        deviation_channels: int = 1,
    ) -> None:
        super().__init__()
        if img_resolution < 8 or img_resolution & (img_resolution - 1):
            raise GeneratorError(
                f"a StyleGAN3 discriminator of {img_resolution} px was asked for: expected a power of two of at least "
                "8; set generator.image_size to one"
            )
        if channel_base < img_resolution:
            raise GeneratorError(
                f"channel_base {channel_base} leaves no channel at {img_resolution} px: expected at least "
                f"{img_resolution}; the official networks have 16384 or 32768"
            )
        self.img_resolution, self.img_channels, self.c_dim = img_resolution, img_channels, c_dim
        side = img_resolution
        while side > 4:
            inputs, outputs = (min(channel_base // s, channel_max) for s in (side, side // 2))
            block = ResidualBlock(img_channels if side == img_resolution else None, inputs, outputs, conv_clamp)
            self.add_module(f"b{side}", block)
            side //= 2
        channels = min(channel_base // 4, channel_max)
        if channels % max(deviation_channels, 1):
            raise GeneratorError(
                f"{deviation_channels} channels of minibatch deviation were asked for {channels} features: expected a "
                "divisor of them"
            )
        self.deviation_group, self.deviation_channels = deviation_group, deviation_channels
        # Before b4: the order of the official files.
        self.mapping = ConditionMapping(c_dim, channels) if c_dim > 0 else None
        outputs = channels if c_dim > 0 else 1
        self.b4 = Epilogue(channels, outputs, conv_clamp, deviation_group, deviation_channels)

    def forward(
        self, images: Float[Tensor, "n c s s"], c: Float[Tensor, "n condition"] | None = None
    ) -> Float[Tensor, " n"]:
        """One logit an image: positive means real.

        Raises:
            GeneratorError: for images or conditions of another shape, or a number of images that neither is below
                ``deviation_group`` nor a multiple of it.
        """
        self._check(images, c)
        x, side = images, self.img_resolution
        while side > 4:
            x = getattr(self, f"b{side}")(x)
            side //= 2
        out = self.b4(x)
        if self.mapping is None:
            return out.squeeze(1)
        return (out * self.mapping(c)).sum(dim=1) / math.sqrt(out.shape[1])

    def _check(self, images: Tensor, c: Tensor | None) -> None:
        check_batch_size(len(images), self.deviation_group)
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if tuple(images.shape[1:]) != expected:
            raise GeneratorError(
                f"the discriminator was given images of shape {tuple(images.shape[1:])}: expected {expected}; resize "
                "them, or build it for their size"
            )
        given = 0 if c is None else c.shape[1]
        if given != self.c_dim:
            raise GeneratorError(
                f"the discriminator was given a condition of length {given}: expected {self.c_dim}"
                + (", one-hot labels" if self.c_dim else "; give none, or build it with c_dim")
            )

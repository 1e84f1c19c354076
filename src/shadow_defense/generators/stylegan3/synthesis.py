"""The synthesis network: styles to images through alias-free layers (docs/generators.md)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.generators.stylegan3.filtered_activation import CLAMP, Resampling, filtered_activation
from shadow_defense.generators.stylegan3.filters import low_pass
from shadow_defense.generators.stylegan3.fourier_input import FourierInput
from shadow_defense.generators.stylegan3.linear import FullyConnected
from shadow_defense.generators.stylegan3.schedule import LayerPlan
from shadow_defense.generators.stylegan3.winograd import convolve

OUTPUT_SCALE = 0.25


class SynthesisLayer(nn.Module):
    """A modulated convolution and an alias-free activation.

    ``y_o = gain_no conv(s_n x, W_o) + b_o`` with the demodulation ``gain_no = rsqrt(sum (W_o s_n)^2 + 1e-8)``: the
    weights are shared over the batch, and the style scales what goes in and what comes out. The moving average of
    the input's mean square keeps the signal at unit variance. The last layer (``to_image``) has no demodulation, no
    filters and no leaky ReLU.
    """

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, plan: LayerPlan, w_dim: int, magnitude_ema_beta: float) -> None:
        super().__init__()
        self.plan, self.magnitude_ema_beta = plan, magnitude_ema_beta
        reads, writes = plan.reads, plan.writes
        self.weight = nn.Parameter(torch.randn(writes.channels, reads.channels, plan.kernel, plan.kernel))
        self.bias = nn.Parameter(torch.zeros(writes.channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        rate = float(plan.inner_rate)
        self.register_buffer("up_filter", low_pass(plan.up_taps, reads.cutoff, 2 * reads.half_width, rate))
        self.register_buffer(
            "down_filter", low_pass(plan.down_taps, writes.cutoff, 2 * writes.half_width, rate, radial=plan.radial)
        )
        self.affine = FullyConnected(w_dim, reads.channels, bias_init=1.0)
        # What the padding crops away again need not be computed.
        reach = plan.kernel - 1
        self.cropped = max(0, -(plan.padding[0] // plan.up))
        extent = (plan.writes.size - 1) * plan.down + plan.down_taps + plan.up_taps - 2 - plan.padding[0]
        last = min(reads.size + reach, extent // plan.up + 1)
        self.window = (self.cropped - reach, last)
        self._resampling: Resampling | None = None
        self.register_load_state_dict_post_hook(_forget_filters)

    def forget_filters(self) -> None:
        """Have the filters' derived forms made again from the buffers, after these were changed."""
        self._resampling = None

    def forward(
        self, x: Float[Tensor, "n i h h"], w: Float[Tensor, "n w"], *, update_averages: bool = False
    ) -> Float[Tensor, "n o s s"]:
        if update_averages:
            self.magnitude_ema.copy_(x.detach().square().mean().lerp(self.magnitude_ema, self.magnitude_ema_beta))
        style = self.affine(w)
        level = self.magnitude_ema.rsqrt()
        if self.up_filter is None or self.down_filter is None:
            scale = style * (level / math.sqrt(style.shape[1]))
            return F.conv2d(x * scale[:, :, None, None], self.weight, self.bias).clamp(-CLAMP, CLAMP)
        style = style * style.square().mean().rsqrt()
        energy = self.weight.square().sum((2, 3))
        evenness = (energy.mean(1) / self.plan.kernel**2).rsqrt()
        # Norms of the weights as they would be after their normalisation, which is applied to the output instead.
        power = style.square() @ (energy * evenness.square()[:, None]).T
        gain = (power + 1e-8).rsqrt() * evenness
        y = self._convolve(x * (style * level)[:, :, None, None])
        if self._resampling is None:
            self._resampling = Resampling.of(self.plan, self.up_filter, self.down_filter, self.cropped, y.shape[-1])
        return filtered_activation(y, gain, self.bias, self._resampling)

    def _convolve(self, x: Tensor) -> Tensor:
        """The full convolution (zeros of kernel - 1 around), without the rows and columns that are cropped later."""
        start, stop = self.window
        around = max(0, -start)
        if around == self.plan.kernel - 1 and stop == x.shape[-1] + around:
            return convolve(x, self.weight, padding=around)
        x = x[:, :, max(0, start) : stop, max(0, start) : stop]
        behind = max(0, stop - self.plan.reads.size)
        return convolve(F.pad(x, (around, behind, around, behind)), self.weight, padding=0)


def _forget_filters(layer: nn.Module, _: object) -> None:
    assert isinstance(layer, SynthesisLayer)
    layer.forget_filters()


class SynthesisNetwork(nn.Module):
    """The Fourier input and the layers of a plan, in order."""

    def __init__(self, plans: tuple[LayerPlan, ...], w_dim: int, magnitude_ema_beta: float) -> None:
        super().__init__()
        self.plans = plans
        self.input = FourierInput(w_dim, plans[0].reads)
        for plan in plans:
            self.add_module(plan.name, SynthesisLayer(plan, w_dim, magnitude_ema_beta))

    def layers(self) -> list[SynthesisLayer]:
        """The layers, in order."""
        return [getattr(self, plan.name) for plan in self.plans]

    @property
    def styles(self) -> int:
        """Number of styles that the network reads: one for the input and one for each layer."""
        return len(self.plans) + 1

    def forward(self, ws: Float[Tensor, "n styles w"], *, update_averages: bool = False) -> Float[Tensor, "n c s s"]:
        return self.from_features(self.input(ws[:, 0]), ws, 0, update_averages=update_averages)

    def features(self, ws: Float[Tensor, "n styles w"], layer: int) -> Float[Tensor, "n features h h"]:
        """What layer number ``layer`` reads: 0 gives the Fourier features, k the output of layer k - 1."""
        x = self.input(ws[:, 0])
        for index, plan in enumerate(self.plans[:layer]):
            x = getattr(self, plan.name)(x, ws[:, index + 1])
        return x

    def from_features(
        self,
        x: Float[Tensor, "n features h h"],
        ws: Float[Tensor, "n styles w"],
        layer: int,
        *,
        update_averages: bool = False,
    ) -> Float[Tensor, "n c s s"]:
        """Images from what layer number ``layer`` reads, through that layer and all later ones."""
        for index in range(layer, len(self.plans)):
            x = getattr(self, self.plans[index].name)(x, ws[:, index + 1], update_averages=update_averages)
        return x * OUTPUT_SCALE

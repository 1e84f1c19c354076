"""StyleGAN3's generator, in the configurations T (translation) and R (rotation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.interface import Generator, LatentSpace
from shadow_defense.generators.stylegan3.filtered_activation import CLAMP
from shadow_defense.generators.stylegan3.mapping import MappingNetwork, truncate
from shadow_defense.generators.stylegan3.schedule import SIZES, plan_layers
from shadow_defense.generators.stylegan3.synthesis import SynthesisNetwork

OFFICIAL_NAMES = {
    "img_resolution": "image_size",
    "img_channels": "channels",
    "z_dim": "z_dim",
    "w_dim": "w_dim",
    "c_dim": "c_dim",
    "channel_base": "channel_base",
    "channel_max": "channel_max",
    "conv_kernel": "kernel",
    "use_radial_filters": "radial",
    "magnitude_ema_beta": "magnitude_ema_beta",
}
"""Constructor arguments of official snapshots, and their names here."""
FIXED = {"conv_clamp": CLAMP}
"""Official arguments that have one value here."""
UNUSED = {"num_fp16_res"}
"""Official arguments that change nothing in 32-bit mathematics."""


def training_magnitude_decay(batch_size: int) -> float:
    """``0.5^(batch / 20000)``: the decay a step of the magnitudes' averages, whose half-life is 20 000 images."""
    return 0.5 ** (batch_size / 20_000)


class StyleGAN3Generator(Generator):
    """Latent codes to images; parameter names and values are interchangeable with official checkpoints.

    Configuration T has kernels of 3 and separable filters; R has kernels of 1, radial filters and twice the channels.

    Args:
        image_size: a power of two from 16 to 1024 pixels.
        channels: 1 (grey) or 3 (colour).
        z_dim, w_dim: lengths of latent codes and of styles.
        c_dim: length of the condition (number of classes); 0 for none.
        channel_base, channel_max: a layer has ``min(channel_base / 2 / cutoff, channel_max)`` feature maps.
        kernel, radial: 3 and False in configuration T, 1 and True in R.
        mapping_layers: fully connected layers of the mapping network.
        magnitude_ema_beta: decay of the moving averages of signal magnitudes, a step of training.

    Raises:
        GeneratorError: for sizes, channels or widths that the architecture does not have.
    """

    latent_spaces: tuple[LatentSpace, ...] = ("z", "w", "w+")

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 1,
        *,
        z_dim: int = 512,
        w_dim: int = 512,
        c_dim: int = 0,
        channel_base: int = 32768,
        channel_max: int = 512,
        kernel: int = 3,
        radial: bool = False,
        mapping_layers: int = 2,
        magnitude_ema_beta: float = 0.999,
    ) -> None:
        super().__init__()
        if image_size not in SIZES:
            raise GeneratorError(
                f"a StyleGAN3 of {image_size} px was asked for: expected {', '.join(map(str, SIZES))}; "
                "set generator.image_size"
            )
        if channels not in (1, 3):
            raise GeneratorError(f"a StyleGAN3 of {channels} channels was asked for: expected 1 (grey) or 3 (colour)")
        self.image_size, self.channels, self.z_dim, self.w_dim, self.c_dim = image_size, channels, z_dim, w_dim, c_dim
        self.channel_base, self.channel_max, self.kernel, self.radial = channel_base, channel_max, kernel, radial
        self.mapping_layers, self.magnitude_ema_beta = mapping_layers, magnitude_ema_beta
        plans = plan_layers(
            image_size, channels, channel_base=channel_base, channel_max=channel_max, kernel=kernel, radial=radial
        )
        if min(plan.writes.channels for plan in plans) < 1:
            raise GeneratorError(
                f"channel_base {channel_base} leaves a layer of {image_size} px without feature maps: expected "
                f"at least {image_size}"
            )
        self.synthesis = SynthesisNetwork(plans, w_dim, magnitude_ema_beta)
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, mapping_layers)

    @classmethod
    def from_official_arguments(cls, arguments: Mapping[str, Any]) -> StyleGAN3Generator:
        """The network that an official snapshot's recorded arguments describe, untrained.

        Raises:
            GeneratorError: naming the argument that this architecture does not have.
        """
        chosen: dict[str, Any] = {}
        for name, value in arguments.items():
            if name == "mapping_kwargs":
                chosen["mapping_layers"] = dict(value).pop("num_layers", 2)
                unknown = set(value) - {"num_layers"}
            else:
                known = name in OFFICIAL_NAMES or name in UNUSED or (name in FIXED and value == FIXED[name])
                unknown = set() if known else {name}
                if name in OFFICIAL_NAMES:
                    chosen[OFFICIAL_NAMES[name]] = value
            if unknown:
                raise GeneratorError(
                    f"the snapshot's network was built with '{sorted(unknown)[0]}', or a value of it, unknown here: "
                    "use a StyleGAN3 snapshot of configuration T or R with the official constants"
                )
        return cls(**chosen)

    def forward(
        self,
        z: Float[Tensor, "n z"],
        c: Float[Tensor, "n c"] | None = None,
        *,
        psi: float = 1.0,
        cutoff: int | None = None,
        update_averages: bool = False,
    ) -> Float[Tensor, "n channels s s"]:
        """Images, nominally in [-1, 1].

        Args:
            c: one-hot labels for a conditional generator; None weighs all classes alike.
            psi, cutoff: truncation of the first ``cutoff`` styles towards their average.
            update_averages: move w_avg and the magnitudes' averages, in GAN training.
        """
        ws = self.styles(z, c, psi=psi, cutoff=cutoff, update_averages=update_averages)
        return self.synthesis(ws, update_averages=update_averages)

    def styles(
        self,
        z: Float[Tensor, "n z"],
        c: Float[Tensor, "n c"] | None = None,
        *,
        psi: float = 1.0,
        cutoff: int | None = None,
        update_averages: bool = False,
    ) -> Float[Tensor, "n styles w"]:
        """The styles of latent codes, one for the input and one for each layer (all alike before truncation)."""
        if c is None and self.c_dim > 0:
            c = z.new_full((len(z), self.c_dim), 1 / self.c_dim)
        w = self.mapping(z, c, update_averages=update_averages)
        return truncate(self._spread(w), self.mapping.w_avg, psi, cutoff)

    def _spread(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n styles w"]:
        return w[:, None].expand(-1, self.synthesis.styles, -1)

    def encode(self, z: Float[Tensor, "n z"], space: LatentSpace = "z") -> Float[Tensor, " n *code"]:
        self.check_space(space)
        if space == "z":
            return z
        ws = self.styles(z)
        return ws[:, 0] if space == "w" else ws

    def decode(self, codes: Float[Tensor, " n *code"], space: LatentSpace = "z") -> Float[Tensor, "n channels s s"]:
        return self.synthesis(self._styles_of(codes, space))

    def _styles_of(self, codes: Float[Tensor, " n *code"], space: LatentSpace) -> Float[Tensor, "n styles w"]:
        self.check_space(space)
        if space == "z":
            return self.styles(codes)
        return self._spread(codes) if space == "w" else codes

    @property
    def feature_layers(self) -> int:
        """The synthesis layers, that to the image included; layer 0 reads the Fourier features."""
        return len(self.synthesis.plans)

    def features(
        self, codes: Float[Tensor, " n *code"], layer: int, space: LatentSpace = "z"
    ) -> Float[Tensor, "n f h h"]:
        self.check_layer(layer)
        return self.synthesis.features(self._styles_of(codes, space), layer)

    def next_features(
        self,
        features: Float[Tensor, "n f h h"],
        codes: Float[Tensor, " n *code"],
        layer: int,
        space: LatentSpace = "z",
    ) -> Float[Tensor, "n g s s"]:
        self.check_layer(layer + 1)
        read_by = getattr(self.synthesis, self.synthesis.plans[layer].name)
        return read_by(features, self._styles_of(codes, space)[:, layer + 1])

    def from_features(
        self,
        features: Float[Tensor, "n f h h"],
        codes: Float[Tensor, " n *code"],
        layer: int,
        space: LatentSpace = "z",
    ) -> Float[Tensor, "n channels s s"]:
        self.check_layer(layer)
        return self.synthesis.from_features(features, self._styles_of(codes, space), layer)

    def set_magnitude_decay(self, beta: float) -> None:
        """Change the decay of the magnitudes' averages, which depends on the batch size of the training."""
        self.magnitude_ema_beta = beta
        for layer in self.synthesis.layers():
            layer.magnitude_ema_beta = beta

    def training_images(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n channels s s"]:
        return self(z, update_averages=True)

    def mapping_parameters(self) -> dict[str, nn.Parameter]:
        return {f"mapping.{name}": parameter for name, parameter in self.mapping.named_parameters()}

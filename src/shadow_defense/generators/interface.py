"""What the defense and the attacks ask of a generator: latent codes in, images in [-1, 1] out."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.errors import GeneratorError, ModelError
from shadow_defense.models.functional import training_mode
from shadow_defense.models.named_state import plain_module

LatentSpace = Literal["z", "w", "w+"]
"""z: what the mapping network reads (the paper's); w: one style for all layers; w+: a style for each layer."""


class Generator(nn.Module):
    """A network from latent codes to images.

    Subclasses set the three attributes and implement :meth:`forward`; those with a mapping network also implement
    :meth:`encode` and :meth:`decode` for the spaces that they list in ``latent_spaces``; those that show what runs
    between their layers implement :attr:`feature_layers` and the three methods that take a layer.

    Attributes:
        z_dim: length of a latent code; codes are drawn from a standard normal distribution.
        image_size: side of the square images, in pixels.
        channels: 1 or 3.
        latent_spaces: the spaces in which codes can be given.
    """

    z_dim: int
    image_size: int
    channels: int
    latent_spaces: tuple[LatentSpace, ...] = ("z",)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c s s"]:
        """Images in [-1, 1]."""
        raise NotImplementedError

    def encode(self, z: Float[Tensor, "n z"], space: LatentSpace = "z") -> Float[Tensor, " n *code"]:
        """The codes of ``space`` that stand for ``z``: (n, z_dim) in z, (n, w_dim) in w, (n, layers, w_dim) in w+.

        Raises:
            GeneratorError: when the generator has no such space.
        """
        self.check_space(space)
        return z

    def decode(self, codes: Float[Tensor, " n *code"], space: LatentSpace = "z") -> Float[Tensor, "n c s s"]:
        """Images in [-1, 1] of codes of ``space``; ``decode(encode(z, space), space)`` equals ``forward(z)``.

        Raises:
            GeneratorError: when the generator has no such space.
        """
        self.check_space(space)
        return self(codes)

    @property
    def feature_layers(self) -> int:
        """Number of layers whose input can be read and given, counted from 0; 0 for a generator that shows none."""
        return 0

    def features(
        self, codes: Float[Tensor, " n *code"], layer: int, space: LatentSpace = "z"
    ) -> Float[Tensor, "n f h h"]:
        """What layer number ``layer`` reads when the generator makes images of ``codes``.

        Raises:
            GeneratorError: when the generator has no such layer or no such space.
        """
        self.check_layer(layer)
        raise NotImplementedError

    def next_features(
        self,
        features: Float[Tensor, "n f h h"],
        codes: Float[Tensor, " n *code"],
        layer: int,
        space: LatentSpace = "z",
    ) -> Float[Tensor, "n g s s"]:
        """What layer ``layer + 1`` reads when layer ``layer`` reads ``features``; for layers that take styles, those
        of ``codes``. Raises what :meth:`features` raises.
        """
        self.check_layer(layer + 1)
        raise NotImplementedError

    def from_features(
        self,
        features: Float[Tensor, "n f h h"],
        codes: Float[Tensor, " n *code"],
        layer: int,
        space: LatentSpace = "z",
    ) -> Float[Tensor, "n c s s"]:
        """Images when layer ``layer`` reads ``features``: ``from_features(features(z, k), z, k)`` equals
        ``forward(z)`` for every layer k. Raises what :meth:`features` raises.
        """
        self.check_layer(layer)
        raise NotImplementedError

    def training_images(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c s s"]:
        """Images for the discriminator's step of GAN training, where a generator may update averages of its own."""
        return self(z)

    def check_space(self, space: str) -> None:
        """Raise :class:`GeneratorError` when the generator takes no codes of ``space``."""
        if space not in self.latent_spaces:
            raise GeneratorError(
                f"latent space '{space}' was asked for but {type(self).__name__} has {', '.join(self.latent_spaces)}: "
                "choose one of them, or a StyleGAN3 generator"
            )

    def check_layer(self, layer: int) -> None:
        """Raise :class:`GeneratorError` when the generator shows no features that ``layer`` reads."""
        if self.feature_layers == 0:
            raise GeneratorError(
                f"{type(self).__name__} shows no features between its layers: give a DCGAN or StyleGAN3 generator, or "
                "choose an attack on latent codes"
            )
        if not 0 <= layer < self.feature_layers:
            raise GeneratorError(
                f"feature layer {layer} was asked for but {type(self).__name__} has 0 to {self.feature_layers - 1}: "
                "choose one of them"
            )

    def mapping_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the mapping network, by name; frozen in the pseudo attack. None by default."""
        return {}

    def synthesis_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the synthesis network, by name: all that are not the mapping network's."""
        mapping = self.mapping_parameters()
        return {name: parameter for name, parameter in self.named_parameters() if name not in mapping}


class Decoder(nn.Module):
    """``generator.decode`` as a forward pass, which is all that ``torch.func.functional_call`` calls.

    Its parameters are the generator's under the prefix ``generator.``.
    """

    def __init__(self, generator: Generator, space: LatentSpace) -> None:
        super().__init__()
        self.generator = generator
        self.space: LatentSpace = space

    def forward(self, codes: Float[Tensor, " n *code"]) -> Float[Tensor, "n c s s"]:
        return self.generator.decode(codes, self.space)


class AdaptedGenerator(Generator):
    """Any module from latent codes to images, seen through the interface; all its parameters are synthesis.

    Raises:
        GeneratorError: when the module does not turn (1, z_dim) codes into one square image of 1 or 3 channels.
    """

    def __init__(self, module: nn.Module, z_dim: int) -> None:
        super().__init__()
        try:
            # In eval mode: a batch norm would fail on one code, or write it into its running statistics.
            with torch.no_grad(), training_mode(module, False):
                shape = module(torch.zeros(1, z_dim)).shape
        except Exception as error:
            raise GeneratorError(
                f"the generator failed on a latent code of shape (1, {z_dim}): {error}; give the z_dim it takes"
            ) from error
        if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or shape[2] != shape[3]:
            raise GeneratorError(
                f"the generator gave a tensor of shape {tuple(shape)} for one latent code: expected "
                "(1, channels, size, size) with 1 or 3 channels"
            )
        self.module = module
        self.z_dim = z_dim
        self.channels = shape[1]
        self.image_size = shape[2]

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c s s"]:
        return self.module(z)


def as_generator(module: nn.Module, z_dim: int | None = None) -> Generator:
    """``module`` itself if it has the interface, else adapted; ``z_dim`` defaults to the module's attribute."""
    if isinstance(module, Generator):
        return module
    z_dim = z_dim if z_dim is not None else getattr(module, "z_dim", None)
    if not isinstance(z_dim, int):
        raise GeneratorError("the generator has no attribute z_dim: give ShadowGuard(..., z_dim=length of its codes)")
    return AdaptedGenerator(module, z_dim)


def private_copy(module: nn.Module) -> nn.Module:
    """A copy in single precision on the CPU, without gradients: whatever is done to it, ``module`` stays as it is.

    Raises:
        GeneratorError: when the module can't be copied, or holds NaN or infinity.
    """
    try:
        own = copy.deepcopy(plain_module(module)).cpu().float()
    except ModelError as error:
        raise GeneratorError(str(error).replace("the model", "the generator")) from error
    except Exception as error:
        raise GeneratorError(
            f"the generator can't be copied ({error}): replace torch.nn.utils.weight_norm and the like by "
            "torch.nn.utils.parametrizations, or load its state into a new instance"
        ) from error
    own.zero_grad(set_to_none=True)
    for name, tensor in own.state_dict().items():
        if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            raise GeneratorError(f"the generator's tensor '{name}' holds NaN or infinity: give a trained network")
    return own


def check_generator(generator: Generator, channels: int, image_size: tuple[int, int]) -> None:
    """Raise :class:`GeneratorError` when the generator cannot imitate images of this shape.

    A larger generator is fine (its images are resized, as in the paper: 256 to 224 px), a smaller one would have
    to invent the detail that the attack rebuilds.
    """
    height, width = image_size
    if generator.channels != channels:
        raise GeneratorError(
            f"the generator makes images of {generator.channels} channels but the images have {channels}: "
            "pre-train it on images with the same number of channels, or set data.channels"
        )
    if height != width:
        raise GeneratorError(
            f"the images are {height} x {width} px but the generator makes square ones: resize them to a square"
        )
    if generator.image_size < height:
        raise GeneratorError(
            f"the generator makes images of {generator.image_size} px but the images are {height} px: pre-train it "
            f"at {height} px or more, or set data.image_size to {generator.image_size}"
        )

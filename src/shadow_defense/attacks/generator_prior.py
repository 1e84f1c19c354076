"""The generator that an attacker holds, as a map from codes, weights or features to the task model's images."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shadow_defense.attacks.observation import Observation
from shadow_defense.generators.interface import Decoder, LatentSpace, check_generator
from shadow_defense.models.functional import functional_call
from shadow_defense.placement import device_of
from shadow_defense.seeds import named_generator


class GeneratorPrior:
    """A copy of the observation's generator, in eval mode; candidates are (r, n, ...): r restarts of n images.

    The n r images of all restarts pass through the generator as one batch.

    Raises:
        ThreatModelError: when the threat model grants no generator.
        GeneratorError: when there is none, or it lacks ``space``, or its images don't cover the client's.
    """

    def __init__(self, observation: Observation, space: LatentSpace) -> None:
        given = observation.generator
        channels, *size = observation.image_shape
        self._size = (size[0], size[1])
        given.check_space(space)
        check_generator(given, channels, self._size)
        self.generator = copy.deepcopy(given).eval().requires_grad_(False)
        self.space: LatentSpace = space
        self._normalisation = observation.normalisation
        self._decoder = Decoder(self.generator, space)

    def codes(self, seed: int, attack: str, restarts: int, count: int) -> Float[Tensor, "r n *code"]:
        """Codes of z ~ N(0, I); a restart's do not depend on how many restarts there are."""
        drawn = [self._z(count, named_generator(seed, attack, restart)) for restart in range(restarts)]
        return self._as_rows(self._encode(torch.cat(drawn)), restarts)

    def _z(self, count: int, draws: torch.Generator) -> Float[Tensor, "n z"]:
        return torch.randn(count, self.generator.z_dim, generator=draws).to(device_of(self.generator))

    def _encode(self, z: Float[Tensor, "n z"]) -> Float[Tensor, " n *code"]:
        with torch.no_grad():
            return self.generator.encode(z, self.space).clone()

    def spread(self, draws: torch.Generator, count: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, entry by entry, of the codes of z ~ N(0, I)."""
        if self.space == "z":
            like = self._z(1, draws)[0]
            return torch.zeros_like(like), torch.ones_like(like)
        codes = self._encode(self._z(count, draws))
        return codes.mean(0), codes.std(0)

    def images(self, codes: Float[Tensor, "r n *code"]) -> Float[Tensor, "r n c h w"]:
        """Normalised images of codes."""
        return self._seen(self._decoder(codes.flatten(0, 1)), len(codes))

    def weights(self) -> dict[str, Tensor]:
        """The synthesis network's parameters, by name."""
        return {name: parameter.detach() for name, parameter in self.generator.synthesis_parameters().items()}

    def images_of_weights(
        self, names: Sequence[str], weights: Sequence[Float[Tensor, "copies ..."]], codes: Float[Tensor, " n *code"]
    ) -> Float[Tensor, "1 n c h w"]:
        """Normalised images of codes under other synthesis parameters: one copy for all images, or one for each."""
        chunks = codes.chunk(len(weights[0]))
        made = []
        for copied, chunk in enumerate(chunks):
            own = {f"generator.{name}": weight[copied] for name, weight in zip(names, weights, strict=True)}
            made.append(functional_call(self._decoder, own, (chunk,)))
        return self._seen(torch.cat(made), 1)

    def features(self, codes: Float[Tensor, "r n *code"], layer: int) -> Float[Tensor, "r n f s s"]:
        """What ``layer`` reads when images of ``codes`` are made."""
        return self._as_rows(self.generator.features(codes.flatten(0, 1), layer, self.space), len(codes))

    def advance(
        self, features: Float[Tensor, "r n f s s"], codes: Float[Tensor, "r n *code"], layer: int, to: int
    ) -> Float[Tensor, "r n g t t"]:
        """What layer ``to`` reads when ``layer`` reads ``features``."""
        flat, styles = features.flatten(0, 1), codes.flatten(0, 1)
        for passed in range(layer, to):
            flat = self.generator.next_features(flat, styles, passed, self.space)
        return self._as_rows(flat, len(codes))

    def images_of_features(
        self, features: Float[Tensor, "r n f s s"], codes: Float[Tensor, "r n *code"], layer: int
    ) -> Float[Tensor, "r n c h w"]:
        """Normalised images when ``layer`` reads ``features``."""
        made = self.generator.from_features(features.flatten(0, 1), codes.flatten(0, 1), layer, self.space)
        return self._seen(made, len(codes))

    def _seen(self, made: Float[Tensor, "m c s s"], restarts: int) -> Float[Tensor, "restarts n c h w"]:
        """As the task model sees them. The clamp lets gradients pass, or a pixel beyond white could never return."""
        made = made + (made.clamp(-1, 1) - made).detach()
        if made.shape[-2:] != self._size:
            made = F.interpolate(made, size=self._size, mode="bilinear", antialias=True, align_corners=False)
        return self._as_rows(self._normalisation.apply((made + 1) / 2), restarts)

    @staticmethod
    def _as_rows(flat: Tensor, restarts: int) -> Tensor:
        return flat.unflatten(0, (restarts, -1))

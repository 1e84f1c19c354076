"""What protecting a batch gives."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shadow_defense.shadow.batch import ShadowBatch


@dataclass(frozen=True)
class Protection:
    """A protected batch and why the noise went where it went; images and noise in normalised units.

    Attributes:
        images: what to train on: the clean images plus ``noise``, in single precision.
        noise: what was added.
        noise_map: N3, the map before the foreground was spared; positive, sums to 1 per image.
        cam: Grad-CAM++ in [0, 1], or None where the foreground is not spared.
        rebuilt: what the shadow generator rebuilt, or None in rounds after the shadow's.
    """

    images: Float[Tensor, "n c h w"]
    noise: Float[Tensor, "n c h w"]
    noise_map: Float[Tensor, "n 1 h w"]
    cam: Float[Tensor, "n h w"] | None
    rebuilt: Float[Tensor, "n c h w"] | None

    @classmethod
    def of_batch(
        cls,
        batch: ShadowBatch,
        noise: Float[Tensor, "m c h w"],
        noise_map: Float[Tensor, "m 1 h w"],
        cam: Float[Tensor, "m h w"] | None,
        rebuilt: Float[Tensor, "m c h w"] | None,
    ) -> Protection:
        """From what each of the m samples got to the n images of the batch, in which one may be several times."""
        cam, rebuilt = (None if each is None else each[batch.places] for each in (cam, rebuilt))
        noise = noise[batch.places]
        return cls(batch.images + noise, noise, noise_map[batch.places], cam, rebuilt)

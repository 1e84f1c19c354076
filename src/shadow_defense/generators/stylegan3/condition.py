"""The mapping of a condition to the direction that the discriminator's logit is read along (docs/generators.md)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from shadow_defense.generators.stylegan3.linear import FullyConnected, normalise_second_moment

LAYERS = 8
LEARNING_RATE_MULTIPLIER = 0.01


class ConditionMapping(nn.Module):
    """``direction = FC_lrelu^8(e / rms(e))`` with the embedding ``e = FC(c)``; no average is kept, unlike for w.

    Args:
        c_dim: length of the condition, at least 1.
        features: length of the direction.
    """

    def __init__(self, c_dim: int, features: int) -> None:
        super().__init__()
        self.embed = FullyConnected(c_dim, features)
        for index in range(LAYERS):
            layer = FullyConnected(
                features, features, activation="lrelu", learning_rate_multiplier=LEARNING_RATE_MULTIPLIER
            )
            self.add_module(f"fc{index}", layer)

    def forward(self, c: Float[Tensor, "n condition"]) -> Float[Tensor, "n features"]:
        x = normalise_second_moment(self.embed(c))
        for index in range(LAYERS):
            x = getattr(self, f"fc{index}")(x)
        return x

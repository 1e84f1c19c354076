"""Step 7: a noise map that remembers earlier rounds."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def blend(new: Float[Tensor, "1 h w"], previous: Float[Tensor, "1 h w"] | None, beta: float) -> Float[Tensor, "1 h w"]:
    """``N3 = beta * N3_previous + (1 - beta) * N2`` for one sample; in its first round N3 = N2.

    beta is 0.1 in the authors' code and 0.9 in the article.
    """
    return new if previous is None else beta * previous + (1 - beta) * new

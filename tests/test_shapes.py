"""Shapes are checked, where asked for: a wrong one raises."""

from __future__ import annotations

import os

import pytest
import torch
from jaxtyping import TypeCheckError

from shadow_defense.metrics.psnr import psnr


@pytest.mark.skipif(not os.environ.get("CHECK_SHAPES"), reason="CHECK_SHAPES=1 checks shapes, as `make test` does")
def test_a_wrong_shape_is_seen() -> None:
    with pytest.raises(TypeCheckError):
        psnr(torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8))

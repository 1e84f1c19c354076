"""Where in a client's work a defense acts, and what of batch norm leaves the client."""

from __future__ import annotations

from typing import Literal

TensorPlace = Literal["gradients", "update"]
Place = Literal["batch", "gradients", "update"]

SharedBatchNorm = Literal["all", "parameters", "stats", "none"]
"""What of batch norm leaves the client: all of it, scales and shifts, running statistics, or nothing."""

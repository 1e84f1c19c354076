"""Federated rounds on Flower, with the same client code as in one process; needs the extra ``flower``."""

from __future__ import annotations

from shadow_defense.errors import RunError
from shadow_defense.federated.flower.environment import be_silent

be_silent()
try:
    import flwr as flwr
except ImportError as error:
    raise RunError(
        "Flower is not installed: install the extra with `pip install 'shadow-defense[flower]'`, or take another engine"
    ) from error

"""Flower reads its environment when it is imported: ours comes first, so that no test tells anybody anything."""

from __future__ import annotations

import shadow_defense.federated.flower  # noqa: F401

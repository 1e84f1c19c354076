"""No defense: the arm that others are compared with."""

from __future__ import annotations

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.kind import DefenseKind, NoSettings

NONE = DefenseKind("none", "plain FedAvg, nothing protected", NoSettings, lambda settings, resources: Defense())

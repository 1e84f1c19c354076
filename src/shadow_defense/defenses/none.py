"""No defense: the arm that others are compared with."""

from __future__ import annotations

from shadow_defense.defenses.base import Defense
from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.registry import NoOptions

NONE = DefenseKind("none", "plain FedAvg, nothing protected", NoOptions, lambda settings, resources: Defense())

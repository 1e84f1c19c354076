"""Shadow Defense: protect federated learning on medical images against gradient inversion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from shadow_defense.experiment.audit.in_memory import Audit, audit
    from shadow_defense.experiment.protecting.certificate import Certificate
    from shadow_defense.experiment.protecting.in_memory import protect, public_network
    from shadow_defense.experiment.results import Results, open_results
    from shadow_defense.generators.build import load_generator
    from shadow_defense.models.together import answer_together
    from shadow_defense.shadow.guard import Protection, ShadowGuard
    from shadow_defense.shadow.settings import ShadowSettings, shadow_preset

__all__ = [
    "Audit",
    "Certificate",
    "Protection",
    "Results",
    "ShadowGuard",
    "ShadowSettings",
    "__version__",
    "answer_together",
    "audit",
    "load_generator",
    "open_results",
    "protect",
    "public_network",
    "shadow_preset",
]

_HOMES = {
    "Audit": "shadow_defense.experiment.audit.in_memory",
    "audit": "shadow_defense.experiment.audit.in_memory",
    "Certificate": "shadow_defense.experiment.protecting.certificate",
    "protect": "shadow_defense.experiment.protecting.in_memory",
    "public_network": "shadow_defense.experiment.protecting.in_memory",
    "answer_together": "shadow_defense.models.together",
    "load_generator": "shadow_defense.generators.build",
    "open_results": "shadow_defense.experiment.results",
    "Results": "shadow_defense.experiment.results",
    "Protection": "shadow_defense.shadow.guard",
    "ShadowGuard": "shadow_defense.shadow.guard",
    "ShadowSettings": "shadow_defense.shadow.settings",
    "shadow_preset": "shadow_defense.shadow.settings",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes seconds, and the command line's help needs none of it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'shadow_defense' has no attribute '{name}'")

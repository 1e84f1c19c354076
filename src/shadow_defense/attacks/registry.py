"""The registry of attacks: this package's own, by the module that has each, and what other packages add."""

from __future__ import annotations

from shadow_defense.attacks.kind import AttackKind
from shadow_defense.errors import ConfigError
from shadow_defense.registry import Registry

OWN: dict[str, AttackKind | str] = {
    "dlg": "shadow_defense.attacks.deep_leakage",
    "fully-connected-leak": "shadow_defense.attacks.fully_connected_leak",
    "ggl": "shadow_defense.attacks.ggl",
    "gias": "shadow_defense.attacks.latent_then_weights",
    "gifd": "shadow_defense.attacks.gifd",
    "gradinversion": "shadow_defense.attacks.gradinversion",
    "gradinversion-group": "shadow_defense.attacks.group_consistency",
    "idlg": "shadow_defense.attacks.deep_leakage",
    "inverting-gradients": "shadow_defense.attacks.inverting_gradients",
    "learning-to-invert": "shadow_defense.attacks.learning_to_invert",
    "model-based": "shadow_defense.attacks.latent_then_weights",
    "r-gap": "shadow_defense.attacks.r_gap",
    "robbing-the-fed": "shadow_defense.attacks.robbing_the_fed",
    "rog": "shadow_defense.attacks.rog",
}

ATTACKS: Registry[AttackKind] = Registry("attack", AttackKind, OWN, ConfigError)

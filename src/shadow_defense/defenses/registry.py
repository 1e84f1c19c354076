"""The registry of defenses: this package's own, by the module that has each, and what other packages add."""

from __future__ import annotations

from shadow_defense.defenses.kind import DefenseKind
from shadow_defense.errors import DefenseError
from shadow_defense.registry import Registry

OWN: dict[str, DefenseKind | str] = {
    "ats": "shadow_defense.defenses.ats",
    "censor": "shadow_defense.defenses.censor",
    "dcs": "shadow_defense.defenses.concealing_samples",
    "dp-sgd": "shadow_defense.defenses.dp_sgd",
    "grad-defense": "shadow_defense.defenses.grad_defense",
    "gradient-clipping": "shadow_defense.defenses.clipping",
    "gradient-sparsification": "shadow_defense.defenses.sparsification",
    "instahide": "shadow_defense.defenses.mixing",
    "local-dp": "shadow_defense.defenses.local_dp",
    "mixup": "shadow_defense.defenses.mixing",
    "noise": "shadow_defense.defenses.noise",
    "none": "shadow_defense.defenses.none",
    "optimal-noise": "shadow_defense.defenses.optimal_noise",
    "outpost": "shadow_defense.defenses.outpost",
    "precode": "shadow_defense.defenses.precode",
    "protect-once": "shadow_defense.defenses.protect_once",
    "shadow": "shadow_defense.defenses.shadow",
    "soteria": "shadow_defense.defenses.soteria",
}

DEFENSES: Registry[DefenseKind] = Registry("defense", DefenseKind, OWN, DefenseError)

ALIASES = {"clip": "gradient-clipping", "dp": "local-dp", "sparse": "gradient-sparsification"}
"""Short names that combinations are written with."""


def part_names(name: str) -> tuple[str, ...]:
    """The registry's names in a name with plus signs; raises :class:`DefenseError` where one comes twice.

    >>> part_names("shadow+clip+dp")
    ('shadow', 'gradient-clipping', 'local-dp')
    """
    names = tuple(ALIASES.get(part.strip(), part.strip()) for part in name.split("+"))
    repeated = [part for part in names if names.count(part) > 1]
    if repeated:
        raise DefenseError(f"the combination '{name}' names '{repeated[0]}' twice: name each defense once")
    return names

"""The registry of generators: this package's own, by the module that has each, and what other packages add."""

from __future__ import annotations

from shadow_defense.errors import GeneratorError
from shadow_defense.generators.kind import Architecture
from shadow_defense.registry import Registry

STYLEGAN3 = ("t", "r", "t-medium", "t-small", "t-tiny", "r-small")

OWN: dict[str, Architecture | str] = {
    "dcgan": "shadow_defense.generators.dcgan",
    **{f"stylegan3-{each}": "shadow_defense.generators.stylegan3_architectures" for each in STYLEGAN3},
}

GENERATORS: Registry[Architecture] = Registry("generator", Architecture, OWN, GeneratorError)


def architecture(name: str) -> Architecture:
    """The registered architecture; an unknown name raises :class:`GeneratorError` listing the valid ones."""
    return GENERATORS.find(name)

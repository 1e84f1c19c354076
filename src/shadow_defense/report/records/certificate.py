"""The record of a protection: what was done, and what the best remover makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor

from shadow_defense.report.records.reading import Measures
from shadow_defense.report.records.scores import Header


def _measured(value: object) -> object:
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {name: each for name, each in value.items() if each is not None}


Numbers = Annotated[Measures, BeforeValidator(_measured)]
"""By metric, over images; null where they are withheld, a metric where it could not be measured."""


@dataclass(frozen=True)
class Counts:
    """Images: protected, attacked, public, spent (set aside), and of other parts, which went through without noise."""

    protected: int
    audited: int
    public: int
    spent: int
    passed: int


@dataclass(frozen=True)
class Example:
    """A public image, protected, and what is made of it; all in [0, 1]."""

    clean: Float[Tensor, "c h w"]
    protected: Float[Tensor, "c h w"]
    removed: Float[Tensor, "c h w"]
    mean: Float[Tensor, "c h w"]


@dataclass(frozen=True)
class Audited:
    """What was made of protected images; ``worst``, ``hindsight`` and ``linkage`` are empty where withheld.

    Attributes:
        worst: of the remover that an attacker believes without seeing the truth.
        hindsight: of the closest remover of each image.
        notes: what else has to be known to read it, such as what could not be tried.
    """

    planted_breaks: Mapping[str, bool]
    removers: Mapping[str, Numbers]
    worst: Numbers
    hindsight: Numbers
    mean_image: Numbers
    linkage: Numbers
    floor: Numbers
    notes: tuple[str, ...] = ()

    @property
    def withheld(self) -> bool:
        """Whether a planted break was not broken, so that nothing follows from what the removers failed at."""
        return not all(self.planted_breaks.values())


@dataclass(frozen=True, kw_only=True)
class CertificateRecord(Audited, Header):
    """A certificate.

    Attributes:
        removal_written: whether the linear removal was written in place of x', and other parts went through its map.
    """

    seed: int
    verdict: tuple[str, ...]
    settings: Mapping[str, object]
    target: str | None
    counts: Counts
    removal_written: bool
    hashes: Mapping[str, str]

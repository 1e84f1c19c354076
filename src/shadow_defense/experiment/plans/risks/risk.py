"""What a risk is: a claim, the trials that test it, and the numbers that they end in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shadow_defense.config import RunConfig
from shadow_defense.experiment.plans.risks.trial import Trial, Trials
from shadow_defense.experiment.store import Store
from shadow_defense.report.records.risks import Finding


@dataclass(frozen=True)
class Risk:
    """One of the risks. What its numbers are called is in :mod:`shadow_defense.report.sentences.risks`.

    Attributes:
        number: in the article's order, from 1.
        name: a few words.
        claim: the article's, in our words.
        experiment: how it is tested, in a sentence or two.
        trials: from the base configuration (whose seed is the trials') to the trials by label, in the order in which
            they are carried out. Raises :class:`ConfigError` for a base that it cannot be tested on.
        measure: from the finished trials of every seed to the finding.
    """

    number: int
    name: str
    claim: str
    experiment: str
    trials: Callable[[RunConfig, Store], dict[str, Trial]]
    measure: Callable[[Sequence[Trials]], Finding]

"""The registry of risks."""

from __future__ import annotations

from shadow_defense.experiment.plans.risks import (
    batch_norm,
    client_size,
    cost,
    perturbation,
    pretrained,
    regions,
    rounds,
)
from shadow_defense.experiment.plans.risks.risk import Risk

RISKS: dict[int, Risk] = {
    1: perturbation.RISK,
    2: batch_norm.RISK,
    3: rounds.RISK,
    4: pretrained.RISK,
    5: client_size.RISK,
    6: cost.RISK,
    7: regions.RISK,
}

"""A training that is killed between two rounds."""

from __future__ import annotations

from typing import Any

from shadow_defense.federated.rounds import Federation


def killed_before(made: Federation, last: int) -> Federation:
    """The training, which ends in a :class:`KeyboardInterrupt` where round ``last`` (0-based) would begin."""
    whole = made.run_round

    def run_round(round: int) -> dict[str, Any]:
        if round == last:
            raise KeyboardInterrupt
        return whole(round)

    made.run_round = run_round  # type: ignore[method-assign]
    return made

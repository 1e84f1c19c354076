"""Which clients take part in a round, where not all do."""

from __future__ import annotations

import torch

from shadow_defense.errors import ConfigError
from shadow_defense.seeds import named_generator


def taking_part(clients: int, per_round: int | None, *, seed: int, round: int) -> tuple[int, ...]:
    """The numbers of a round's clients, in order: all of them, or so many drawn without replacement.

    Uniformly at random and anew in every round (McMahan et al. 2017, algorithm 1), by the round's name: every engine
    draws the same clients, and so does a training that was stopped.

    Args:
        clients: how many there are.
        per_round: how many take part; None: all.
        round: r (0-based).

    Raises:
        ConfigError: where more are asked for than there are.

    >>> [taking_part(5, 2, seed=0, round=round) for round in range(3)]
    [(0, 2), (1, 4), (3, 4)]
    """
    if per_round is None:
        return tuple(range(clients))
    if per_round > clients:
        raise ConfigError(f"training.clients_per_round={per_round} and there are {clients} clients: ask for no more")
    drawn = torch.randperm(clients, generator=named_generator(seed, "clients of round", round))[:per_round]
    return tuple(sorted(drawn.tolist()))

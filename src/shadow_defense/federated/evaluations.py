"""What a client says of a model that it measured on its own images: rounded, and seldom enough."""

from __future__ import annotations

import math

from shadow_defense.errors import DataError, RunError, UpdateError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.files import read_json, write_json

LEAST_EVALUATED = 10
"""Images below which a client's loss and accuracy stay at home, if the site says nothing else."""

DIGITS = 3
"""Significant digits of every number that leaves beside the update."""


def rounded(name: str, value: object) -> float:
    """A number as it may leave, to :data:`DIGITS` significant digits: too few to carry anything but itself.

    Raises:
        UpdateError: for anything but one finite number.

    >>> rounded("loss", 0.123456), rounded("loss", 123456)
    (0.123, 123000.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UpdateError(f"the metric '{name}' is no finite number: only single numbers leave")
    return float(f"{value:.{DIGITS}g}")


def admit_evaluation(states: ClientStateFolder, round: int, model: str, samples: int, least: int) -> None:
    """Note that a model is answered for, or refuse to: a server could else try models until they tell of one image.

    Args:
        round: 0-based; the client has to have trained in it.
        model: digest of the model that was measured.
        least: images that a loss has to be the mean of.

    Raises:
        DataError: for fewer images.
        RunError: in another round than the client's last, for a second model in a round, or for a model again.
    """
    if samples < least:
        raise DataError(
            f"client '{states.client}' has {samples} images to evaluate on, at least {least} are needed: evaluate on "
            "the server"
        )
    if states.last_round() != round:
        raise RunError(
            f"client '{states.client}' is asked to evaluate in round {round + 1}, in which it has not trained: it "
            "answers in its own rounds only"
        )
    path = states.folder / "evaluated.json"
    before = read_json(path, f"delete {states.folder} and begin a run of another name") if path.exists() else []
    if any(each["round"] >= round or each["model"] == model for each in before):
        raise RunError(
            f"client '{states.client}' has evaluated in round {round + 1}, or this very model, already: once is enough"
        )
    # On disk before the answer leaves.
    write_json(path, [*before, {"round": round, "model": model}])

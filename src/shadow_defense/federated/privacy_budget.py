"""What a client has spent of its privacy over all runs: a log at its site, which stops what would spend more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shadow_defense.errors import DefenseError, RunError
from shadow_defense.files import path_name, read_json, write_json

SPENT = "epsilon_spent"
"""Under which name a defense measures what it has spent in a run so far."""


def spend(root: Path, run: str, client: str, measured: Mapping[str, float], most: float | None) -> None:
    """Note what a run has spent so far, before its update leaves; nothing where no budget was set and none is counted.

    The epsilons of a client's runs add up (Dwork and Roth 2014, "The algorithmic foundations of differential privacy",
    theorem 3.16), at the sum of their deltas; within a run the defense's own accountant counts.

    Args:
        root: the site's folder; the log is ``budget/<client>.json`` below it.
        measured: by the defense, this update included.
        most: epsilon of all runs together, as the site set it; None: no end.

    Raises:
        DefenseError: where that would be more, or the defense counts none and there is a budget: nothing may leave.
        RunError: where the log cannot be read.
    """
    epsilon = measured.get(SPENT)
    if epsilon is None:
        if most is not None:
            raise DefenseError(
                f"the site's budget is an epsilon of {most:g} and the defense counts none: take local-dp"
            )
        return
    path = root / "budget" / f"{path_name(client)}.json"
    spent = _read(path)
    total = sum(value for name, value in spent.items() if name != run) + epsilon
    # Not more, and not what is no number.
    if most is not None and not total <= most:
        raise DefenseError(
            f"with this update client '{client}' would have spent an epsilon of {total:.3g} over all runs, and the "
            f"site's budget is {most:g}: nothing leaves any more"
        )
    write_json(path, {**spent, run: epsilon})


def _read(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    found = read_json(path, "a log that cannot be read counts for a spent budget: mend it")
    if not isinstance(found, dict) or not all(
        isinstance(value, int | float) and value >= 0 for value in found.values()
    ):
        raise RunError(f"{path} is no log of epsilons by run: mend it; until then nothing leaves")
    return {name: float(value) for name, value in found.items()}

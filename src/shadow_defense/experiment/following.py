"""A run's rounds in the hands of a logger as they end, whichever engine trains, and in whichever process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shadow_defense.errors import RunError
from shadow_defense.experiment.described import rounds_of
from shadow_defense.experiment.loggers import OnMeasurement, of_round
from shadow_defense.experiment.run import Run

EVERY = 1.0
"""Seconds between two looks at the journals, which each training writes whole after every round."""


@contextmanager
def following(run: Run, on_measurement: OnMeasurement) -> Iterator[None]:
    """For the block, hand ``on_measurement`` what every round of every arm measured, soon after it has ended.

    It is called by one thread at a time, never for a round that had ended before.

    Raises:
        RunError: at the end of the block, where the logger failed: the run was not kept from going on.
    """
    told = {arm: len(rounds_of(run.arm_folder(arm))) for arm in run.config.arms}
    ended, failures = threading.Event(), list[Exception]()

    def tell() -> None:
        for arm, count in told.items():
            rounds = rounds_of(run.arm_folder(arm))
            for entry in rounds[count:]:
                for name, value, round in of_round(arm, entry):
                    on_measurement(name, value, round)
            told[arm] = len(rounds)

    def follow() -> None:
        try:
            while not ended.wait(EVERY):
                tell()
            tell()
        # Whatever a stranger's logger raises.
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=follow, name="logger", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    for error in failures:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(
            f"the logger failed ({line}) and was told no more; the run itself went on: "
            f"open_results({str(run.folder)!r}).log_to(...) hands over all of it"
        ) from error

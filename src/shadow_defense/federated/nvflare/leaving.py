"""What leaves a site beside the one difference: meta data and headers by a list, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants

from shadow_defense.errors import UpdateError, shown
from shadow_defense.federated.evaluations import rounded
from shadow_defense.federated.nvflare.exchange import SAMPLES
from shadow_defense.federated.update import MOST_COUNTED

COUNTS = (
    SAMPLES,
    FLMetaKey.NUM_STEPS_CURRENT_ROUND,
    FLMetaKey.START_ROUND,
    FLMetaKey.CURRENT_ROUND,
    FLMetaKey.TOTAL_ROUNDS,
)
"""Meta data that are whole numbers."""

UNSENT = (FLMetaKey.SITE_NAME, FLMetaKey.JOB_ID, FLMetaKey.FILTER_HISTORY)
"""Meta data that NVFlare itself puts there and tells the server anyway: left out."""

HEADERS = (AppConstants.CURRENT_ROUND, AppConstants.START_ROUND, AppConstants.NUM_ROUNDS)
"""All of a result's headers that pass; those that a reply needs besides NVFlare sets after the filters."""


def leaving_meta(meta: Mapping[str, Any], *, named: Collection[str], replaced: bool) -> dict[str, Any]:
    """The meta data of a result that may leave; all else is refused, since it could be the update itself.

    Args:
        named: metrics that may leave, each one number, rounded; as meta data of their own or among ``metrics``.
        replaced: the caller computes SCAFFOLD's difference itself, so that the script's is left out.

    Raises:
        UpdateError: naming what is not on the list.
    """
    leaving: dict[str, Any] = {}
    for name, value in meta.items():
        if name in COUNTS:
            leaving[name] = counted(name, value)
        elif name in named:
            leaving[name] = rounded(name, value)
        elif name == FLMetaKey.INITIAL_METRICS and isinstance(value, Mapping):
            leaving[name] = {each: _metric(each, found, named) for each, found in value.items()}
        elif name in UNSENT or (replaced and name == AlgorithmConstants.SCAFFOLD_CTRL_DIFF):
            continue
        else:
            hint = (
                "give the filter scaffold_learning_rate, which computes it from what is protected"
                if name == AlgorithmConstants.SCAFFOLD_CTRL_DIFF
                else "leave it out, or name it in metrics=... if it is one number"
            )
            raise UpdateError(f"the result's meta data hold '{shown(name)}', which nothing protects: {hint}")
    return leaving


def leaving_headers(shareable: Shareable) -> dict[str, int]:
    """The headers of a result that pass. Raises :class:`UpdateError` where one of them is no count."""
    found = {name: shareable.get_header(name) for name in HEADERS}
    return {name: counted(name, value) for name, value in found.items() if value is not None}


def round_of(shareable: Shareable, rounds: int) -> int:
    """The round (0-based) of a message. Raises :class:`UpdateError` where it does not say, or beyond ``rounds``."""
    round = shareable.get_header(AppConstants.CURRENT_ROUND)
    if not isinstance(round, int):
        raise UpdateError(f"the result does not say its round ({AppConstants.CURRENT_ROUND}): use the Client API")
    if not 0 <= round < rounds:
        raise UpdateError(f"the server asks for round {round + 1} of {rounds}: use one configuration")
    return round


def counted(name: str, value: object) -> int:
    """A whole number as it may leave. Raises :class:`UpdateError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_COUNTED:
        raise UpdateError(f"the result says {name}={shown(value, 40)}: expected a whole number up to {MOST_COUNTED}")
    return value


def _metric(name: object, value: object, named: Collection[str]) -> float:
    if not isinstance(name, str) or name not in named:
        raise UpdateError(
            f"the result holds the metric '{shown(name)}', which the site does not let leave: leave it out, or name it "
            "in metrics=..."
        )
    return rounded(name, value)

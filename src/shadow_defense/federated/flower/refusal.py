"""Failing closed: where anything goes wrong at a client, no update leaves, and no word of what went wrong."""

from __future__ import annotations

import logging
from contextlib import suppress

from flwr.app import Error, Message

from shadow_defense.errors import ShadowDefenseError
from shadow_defense.federated.flower.client_state import ClientStateFolder

WITHHELD = 1001
"""The code of a reply that says that the client sends nothing in this round; Flower's own codes are below 1000."""

log = logging.getLogger("shadow_defense.federated.flower")


def refusal(message: Message, error: Exception) -> Message:
    """The reply in place of an update: which kind of error it was, without its text.

    Flower itself would send the text to the server; that of an error may name files, samples or values.
    """
    return Message(Error(WITHHELD, f"update withheld: {type(error).__name__}; see the client's log"), reply_to=message)


def explain_locally(error: Exception, states: ClientStateFolder | None) -> None:
    """Say in the client's own log, and beside its state, why nothing was sent; of a user's mistake no traceback."""
    who = "client" if states is None else f"client '{states.client}'"
    line = f"{who}: update withheld: {type(error).__name__}: {' '.join(str(error).split())}"
    log.error(line, exc_info=None if isinstance(error, ShadowDefenseError) else error)
    if states is not None:
        # A full disk may be what went wrong; its error's text must not reach the server either.
        with suppress(OSError, ShadowDefenseError):
            states.refuse(line)

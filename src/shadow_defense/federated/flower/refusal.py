"""Failing closed: where anything goes wrong at a client, no update leaves, and no word of what went wrong."""

from __future__ import annotations

import builtins
import logging
from contextlib import suppress

from flwr.app import Error, Message

from shadow_defense import errors
from shadow_defense.errors import ShadowDefenseError
from shadow_defense.federated.client_state import ClientStateFolder

WITHHELD = 1001
"""The code of a reply that says that the client sends nothing in this round; Flower's own codes are below 1000."""

log = logging.getLogger("shadow_defense.federated.flower")


def refuse(message: Message, error: Exception, states: ClientStateFolder | None) -> Message:
    """The reply in place of an update: which kind of error it was. Its text stays with the client.

    Flower itself would send the text to the server; that of an error may name files, samples or values.
    """
    _explain_locally(error, states)
    kind = type(error)
    # Another's class may be called anything, and say that it is from anywhere.
    known = getattr(errors, kind.__name__, getattr(builtins, kind.__name__, None)) is kind
    name = kind.__name__ if known else "Exception"
    return Message(Error(WITHHELD, f"update withheld: {name}; see the client's log"), reply_to=message)


def _explain_locally(error: Exception, states: ClientStateFolder | None) -> None:
    who = "client" if states is None else f"client '{states.client}'"
    line = f"{who}: update withheld: {type(error).__name__}: {' '.join(str(error).split())}"
    # Of a user's mistake no traceback.
    log.error(line, exc_info=None if isinstance(error, ShadowDefenseError) else error)
    if states is not None:
        # A full disk may be what went wrong; its error's text must not reach the server either.
        with suppress(OSError, ShadowDefenseError):
            states.refuse(line)

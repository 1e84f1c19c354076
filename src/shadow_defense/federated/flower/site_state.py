"""Where a node's site has its states: its own choice, never the server's.

Flower's own ``context.state`` is lost when a SuperNode restarts, and silently when it is large (spec/flower.md 4).
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from shadow_defense.errors import RunError

STATE_FOLDER = "state-dir"
"""The key of the node's own configuration that says where its state lies: the site's choice, never the server's."""


def state_root(context: Context) -> Path:
    """The folder that the site gave its node for states. Raises :class:`RunError` where it gave none."""
    given = context.node_config.get(STATE_FOLDER)
    if not isinstance(given, str) or not given:
        raise RunError(
            f"this node has no folder for its state: start the SuperNode with --node-config '{STATE_FOLDER}=\"FOLDER\"'"
        )
    return Path(given).expanduser().resolve()

"""Where a node's site has its states, and which of its nodes this is: its own choice, never the server's.

Flower's own ``context.state`` is lost when a SuperNode restarts, and silently when it is large (docs/flower.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import Context

from shadow_defense.errors import RunError
from shadow_defense.federated.site_folder import state_root as users_state_root

STATE_FOLDER = "state-dir"
"""The key of the node's own configuration that says where its state lies: the site's choice, never the server's."""

BUDGET = "epsilon-budget"
"""The key of the node's own configuration that says how much epsilon all its runs may spend together."""

PARTITION = "partition-id"
"""The key of the node's own configuration that says which of the clients it is; replies carry it too."""


def state_root(context: Context) -> Path:
    """The folder that the site gave its node for states.

    A simulated node is no site: where none was given, its run has one in the user's folder for states.

    Raises:
        RunError: for a node of a deployment without a folder.
    """
    given = context.node_config.get(STATE_FOLDER)
    if not isinstance(given, str) or not given:
        if is_simulated():
            return users_state_root() / "simulations" / f"run-{context.run_id}"
        raise RunError(
            f"this node has no folder for its state: start the SuperNode with --node-config '{STATE_FOLDER}=\"FOLDER\"'"
        )
    return Path(given).expanduser().resolve()


def is_simulated() -> bool:
    """Whether this process is a worker of Flower's simulation engine, which are Ray's."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def epsilon_budget(context: Context) -> float | None:
    """What the node's site lets all its runs spend; None: no end. Raises :class:`RunError` for what is no number."""
    given = context.node_config.get(BUDGET)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise RunError(f"--node-config '{BUDGET}={given}': expected a number above 0, such as {BUDGET}=8.0")
    return float(given)


def node_name(context: Context) -> str:
    """What this node's state and secret are kept under: its partition where the site gave one, else its number.

    The number is the server's and new with every start that does not authenticate: nodes of one site without
    ``partition-id`` never meet in one state, and begin anew when they are started again.
    """
    partition = context.node_config.get(PARTITION)
    return f"node-{context.node_id}" if partition is None else f"partition-{partition}"

"""Where a site keeps its secret: the site's own choice, and never the folder that is protected."""

from __future__ import annotations

from pathlib import Path

from shadow_defense.errors import RunError
from shadow_defense.federated.site_folder import STATE_FOLDER, state_root
from shadow_defense.federated.site_secret import site_seed


def site_secret(out: Path | None = None) -> int:
    """The seed of all draws of this site's protections, of 256 bits, kept below :func:`state_root`.

    Raises:
        RunError: where it would lie in ``out``, which others may read, or cannot be read or written.
    """
    root = state_root()
    if out is not None and root.is_relative_to(out.resolve()):
        raise RunError(f"the site's secret would lie in {out}, which it protects: set {STATE_FOLDER} to another folder")
    return site_seed(root)

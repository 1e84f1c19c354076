"""Federated rounds on NVFlare: update-space defenses as a filter, and an auditor; needs the extra ``nvflare``."""

from __future__ import annotations

from shadow_defense.errors import RunError

try:
    import nvflare as nvflare
except ImportError as error:
    raise RunError(
        "NVFlare is not installed: install the extra with `pip install 'shadow-defense[nvflare]'`"
    ) from error

"""`shadow-defense audit --protected`: what can be made of a protected folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def audit_protected(
    protected: Path,
    texture: str | None,
    truth: str | None,
    public: str | None,
    overrides: list[str],
    out: Path,
    quiet: bool,
) -> None:
    """Hand the attacker the folder as it lies there, and write the certificate of what it makes of it."""
    from shadow_defense.cli.progress import progress_unless
    from shadow_defense.cli.protect import tell_forecast, told
    from shadow_defense.config import assignments
    from shadow_defense.errors import ConfigError
    from shadow_defense.experiment.protecting.folder_audit import FolderRequest, audit_folder
    from shadow_defense.experiment.protecting.settings import protect_preset
    from shadow_defense.folder_lock import holding

    if truth is None:
        raise ConfigError("--protected needs the images that it was made of, for scoring alone: give --truth")
    settings = protect_preset(texture or "recommended", **assignments(overrides))
    request = FolderRequest(protected, truth, public, settings, told=texture is not None)
    with holding(out), progress_unless(quiet) as progress:
        command = shlex.join(["shadow-defense", *sys.argv[1:]])
        tell = None if quiet else tell_forecast
        certificate = audit_folder(request, out, command=command, progress=progress, tell=tell)
    told(certificate, out, quiet)

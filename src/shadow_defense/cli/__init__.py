"""The command line: thin commands over the stages of a run."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``shadow-defense``: errors of a user's making are one line and exit code 2."""
    from shadow_defense.cli.app import run_app

    run_app()

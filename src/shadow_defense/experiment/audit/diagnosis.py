"""From the measured facts of an update to why an attack on it works or fails, as the pages say it."""

from __future__ import annotations

from shadow_defense.report.sentences.audit_diagnosis import diagnose

__all__ = ["diagnose"]

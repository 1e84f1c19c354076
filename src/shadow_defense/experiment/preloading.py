"""The process that workers are forked from: it imports once what all of them need."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOADED = ("shadow_defense.experiment.tasks", "torchmetrics.functional.classification")
"""What a worker has imported when it starts; the second takes as long as torch, and is imported late elsewhere."""


def forking_context() -> ForkServerContext:
    """What makes worker processes as forks of that one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def preload() -> None:
    """Start that process now: it imports on another core while this one imports torch itself."""
    forking_context()
    forkserver.ensure_running()

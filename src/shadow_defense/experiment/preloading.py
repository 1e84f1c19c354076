"""The process that workers are forked from: it imports once what all of them need."""

from __future__ import annotations

import os
import threading
from multiprocessing import forkserver, popen_forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess

PRELOADED = ("shadow_defense.experiment.tasks", "torchmetrics.functional.classification", "torch._dynamo")
"""What a worker has imported when it starts; the second takes as long as torch, and is imported late elsewhere.

The third, which torch imports with the first optimiser, takes a second.
"""


class _Forked(popen_forkserver.Popen):
    """How a worker ended lies in a pipe, once: a second thread that read there too would find its end and say 255."""

    def __init__(self, process_obj: BaseProcess) -> None:
        self._lock = threading.Lock()
        super().__init__(process_obj)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if flag != os.WNOHANG:
            wait([self.sentinel])
        with self._lock:
            return super().poll(os.WNOHANG)


class _Worker(ForkServerProcess):
    _Popen = staticmethod(_Forked)


class _Forking(ForkServerContext):
    Process = _Worker


def forking_context() -> ForkServerContext:
    """What makes worker processes as forks of that one."""
    context = _Forking()
    context.set_forkserver_preload(list(PRELOADED))
    return context


def preload() -> None:
    """Start that process now: it imports on another core while this one imports torch itself."""
    forking_context()
    forkserver.ensure_running()

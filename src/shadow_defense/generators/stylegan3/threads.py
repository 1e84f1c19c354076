"""Compiled loops shared among torch's number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}


def run_shares(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(first, last, *arguments)`` on shares of ``range(count)``, one for each of torch's threads."""
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * index // threads for index in range(threads + 1)]
    # Threads do not survive a fork: each process has its own.
    pool = _pools.get(os.getpid())
    if pool is None and threads > 1:
        pool = _pools.setdefault(os.getpid(), ThreadPoolExecutor(os.cpu_count() or 1, "compiled loops"))
    shares = [pool.submit(function, a, b, *arguments) for a, b in pairwise(bounds[1:]) if pool]
    function(bounds[0], bounds[1], *arguments)
    for share in shares:
        share.result()

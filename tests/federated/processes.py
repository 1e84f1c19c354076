"""What running processes are, and whom they listen and talk to, from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same within IPv6, and ::1, as the kernel writes them."""

WAITING = "0A"
"""The kernel's state of a socket that waits for connections."""


def told(words: str, where: str = "environ") -> list[Path]:
    """The processes in whose environment (or ``cmdline``) the words stand, whoever's children they are by now."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if words.encode() in (place / where).read_bytes():
                found.append(place)
    return found


def listening(processes: list[Path]) -> set[str]:
    """The addresses at which processes wait for connections, as the kernel writes them."""
    return _addresses(processes, waiting=True)


def talking(processes: list[Path]) -> set[str]:
    """The other ends of the processes' connections, as the kernel writes addresses."""
    return _addresses(processes, waiting=False)


def _addresses(processes: list[Path], *, waiting: bool) -> set[str]:
    addresses = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, own, other, state, *rest = line.split()
            if (state == WAITING) == waiting:
                addresses[f"socket:[{rest[5]}]"] = (own if waiting else other).split(":")[0]
    found = set[str]()
    for place in processes:
        with contextlib.suppress(OSError):
            for descriptor in (place / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(addresses.get(str(descriptor.readlink()), ""))
    return found - {""}

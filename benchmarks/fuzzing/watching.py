"""What reading must not do: start a program, write outside its folder, call out. Seen through Python's audit events."""

from __future__ import annotations

import os
import sys
from pathlib import Path

STARTS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile",
    "pty.spawn",
)  # fmt: skip
CALLS = ("socket.connect", "socket.getaddrinfo", "socket.bind")
CHANGES = {
    "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "shutil.rmtree": 1,
}  # fmt: skip
"""Events that change the disk, and how many of their first arguments name what is changed."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes, and refuses, what must not be done while it is on.

    Attributes:
        acts: what was done, in words.
    """

    def __init__(self) -> None:
        self.acts: list[str] = []
        self._folder: str | None = None
        sys.addaudithook(self._see)

    def begin(self, folder: Path) -> None:
        """From now on nothing may be written but below ``folder``."""
        self.acts, self._folder = [], os.path.realpath(folder)

    def end(self) -> list[str]:
        """What was done since :meth:`begin`."""
        self._folder = None
        return self.acts

    def _see(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._folder is None:
            return
        if event in STARTS:
            self._refuse(f"{event} {arguments[:2]}"[:200])
        elif event in CALLS:
            raise OSError(101, "no network while fuzzing")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self._check(event, path)
        elif event in CHANGES:
            for path in arguments[: CHANGES[event]]:
                self._check(event, path)

    def _check(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike) or self._folder is None:
            return
        named = Path(os.fsdecode(path))
        # What a link points to is opened, and is not what is renamed or removed.
        place = os.path.realpath(named if event == "open" else named.parent)
        if os.devnull in (place, str(named)) or place == self._folder or place.startswith(self._folder + os.sep):
            return
        self._refuse(f"{event} {os.fsdecode(path)[:160]!a} outside the folder")

    def _refuse(self, act: str) -> None:
        self.acts.append(act)
        raise PermissionError(f"refused while fuzzing: {act}")

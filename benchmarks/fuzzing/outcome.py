"""How an input ended: fine, refused in one line, or a fault, with the place where it arose."""

from __future__ import annotations

import re
import traceback
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shadow_defense.errors import ShadowDefenseError

LONGEST_LINE = 600
"""Characters of a refusal: the names of a whole registry are some five hundred."""

STARVED = ("can't allocate memory", "Unable to allocate", "bad_alloc")


@dataclass(frozen=True)
class Outcome:
    """How one input ended.

    Attributes:
        fault: the kind of fault, such as an exception's name; "" for fine and refused.
        place: where in the project it arose.
        text: the refusal or the fault's own words.
    """

    verdict: Literal["fine", "refused", "fault"]
    fault: str = ""
    place: str = ""
    text: str = ""


class RefusedError(Exception):
    """What a command printed before it ended with exit code 2, as it was printed."""


def judge(give: Callable[[], object]) -> Outcome:
    """Call, and say how it ended."""
    try:
        give()
    except ShadowDefenseError as error:
        return _judge_refusal(error)
    except RefusedError as printed:
        fault = fault_of_line(str(printed))
        return Outcome("fault" if fault else "refused", fault, "", ascii(str(printed)) if fault else str(printed))
    except BaseException as error:  # Whatever else comes out is a traceback to the user.
        frames = [f"{_short(frame.filename)}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        return Outcome("fault", type(error).__name__, _place(frames), " ".join(str(error).split())[:300])
    return Outcome("fine")


def _judge_refusal(error: ShadowDefenseError) -> Outcome:
    text, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, MemoryError) or any(sign in str(cause) for sign in STARVED):
            frames = traceback.extract_tb(cause.__traceback__)
            place = _place([f"{_short(frame.filename)}:{frame.lineno}" for frame in frames])
            return Outcome("fault", "memory asked for before it was refused", place, text[:300])
        cause = cause.__cause__ or cause.__context__
    fault = fault_of_line(text)
    if fault:
        frames = traceback.extract_tb(error.__traceback__)
        place = _place([f"{_short(frame.filename)}:{frame.lineno}" for frame in frames])
        return Outcome("fault", fault, place, ascii(text)[:300])
    return Outcome("refused", text=text)


def fault_of_line(text: str) -> str:
    """What is wrong with a refusal's text; "" where it is one line that a terminal can show."""
    if not text.strip():
        return "refusal without a word"
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text):
        return "refusal with control characters"
    if len(text) > LONGEST_LINE:
        return f"refusal above {LONGEST_LINE} characters"
    return ""


def place_in_dump(dump: str) -> str:
    """The place in what faulthandler wrote: of the thread that is in the project, the innermost lines."""
    threads = re.split(r"\n\s*\n", dump)
    frames = [
        [f"{_short(name)}:{line}" for name, line in re.findall(r'File "([^"]+)", line (\d+)', thread)][::-1]
        for thread in threads
    ]
    inside = [each for each in frames if any("shadow_defense/" in frame for frame in each)] or frames
    return _place(inside[0]) if inside else ""


def _place(frames: list[str]) -> str:
    """The innermost frame of the project, and the innermost of all where that is another's."""
    ours = [frame for frame in frames if frame.startswith("shadow_defense/")]
    last = frames[-1] if frames else ""
    if not ours:
        return last
    return ours[-1] if ours[-1] == last else f"{ours[-1]} > {last}"


def _short(filename: str) -> str:
    for root in ("/src/", "/site-packages/", "/python3"):
        before, found, after = filename.rpartition(root)
        if found and before:
            return after
    return filename

"""A machine that reads pickles and can call nothing that the pickle names.

A pickle is a program for a stack machine; Python's own runs whatever callables the program asks for. This one knows
the instructions that files of tensors use and answers every name with an inert stand-in
of this package, or refuses it. A ``pickle.Unpickler`` restricted by ``find_class`` would not do: a megabyte of nested
tuples as a dictionary's key crashes it, nine bytes make it ask for 32 GiB, and its BUILD sets attributes.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shadow_defense.errors import SnapshotError

HIGHEST_PROTOCOL = 5


def quoted(text: str, longest: int = 80) -> str:
    r"""Text out of an untrusted file, fit for one line on a terminal.

    >>> quoted("a\nb\x1b[2J")
    "'a\\nb\\x1b[2J'"
    """
    return ascii(text if len(text) <= longest else f"{text[: longest - 3]}...")


class Allowance:
    """What reading one file may cost: machine instructions (with modules and values visited), and bytes copied.

    Without it, a small file could refer to its one large tensor or list a million times.
    """

    def __init__(self, steps: int, copied_bytes: int) -> None:
        self._steps, self._copied_bytes = steps, copied_bytes

    def step(self) -> None:
        """Count one instruction. Raises :class:`SnapshotError` when the allowance is spent."""
        self._steps -= 1
        if self._steps < 0:
            raise SnapshotError("it has more parts than anything that is read here")

    def copy(self, size: int) -> None:
        """Count ``size`` bytes about to be copied. Raises :class:`SnapshotError` when the allowance is spent."""
        self._copied_bytes -= size
        if self._copied_bytes < 0:
            raise SnapshotError("its tensors would take more memory than the file holds")


Replacement = Callable[[tuple[object, ...]], object]
"""What a call with these arguments gives instead."""


@dataclass(frozen=True, eq=False, slots=True)
class StandIn:
    """What the machine puts in place of a global name: calling the name means ``replace(arguments)``."""

    name: str
    replace: Replacement


class Placeholder:
    """Something that is not needed: takes any state and forgets it."""

    __slots__ = ()


class RemarkedDict(dict[str, object]):
    """A dictionary that also takes any state and forgets it: torch's state dicts carry remarks for loading."""

    __slots__ = ()


Globals = Mapping[tuple[str, str], StandIn]
"""Stand-ins by module and name."""

NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
VALUES = frozenset(NUMBERS + TEXTS + BYTES)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Runs one pickle; everything it builds is plain data, stand-ins, or what stand-ins gave.

    Keys of dictionaries and members of sets are strings only: hashing deeply nested tuples overflows the C stack.
    """

    def __init__(
        self, names: Globals, allowance: Allowance, persistent: Callable[[object], object] | None = None
    ) -> None:
        self._names, self._allowance, self._persistent = names, allowance, persistent
        self._stack: list[object] = []
        self._below: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def run(self, stream: io.BytesIO) -> object:
        """The value of the pickle at the stream's position, which moves behind it.

        Raises:
            SnapshotError: when the pickle is damaged, or uses an instruction or a name that is not known.
        """
        try:
            with warnings.catch_warnings():
                # A damaged name with a backslash has Python warn of its own deprecations.
                warnings.simplefilter("ignore")
                self._run(stream)
        except ValueError as error:
            # pickletools: an unknown instruction, or an argument longer than the rest of the file.
            raise SnapshotError("it is cut off or damaged, or no pickle at all") from error
        return self._stack.pop()

    def _run(self, stream: io.BytesIO) -> None:
        size = stream.getbuffer().nbytes
        for opcode, argument, position in pickletools.genops(stream):
            self._allowance.step()
            if opcode.name == "FRAME" and (argument or 0) > size - stream.tell():
                raise SnapshotError("it is cut off")
            try:
                self._step(opcode.name, argument)
            except (IndexError, KeyError) as error:
                raise SnapshotError(f"it is damaged at byte {position}") from error

    def _step(self, name: str, argument: object) -> None:
        if name in VALUES:
            self._stack.append(argument)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self._stack.append(EMPTY[name]())
        elif name in TUPLES:
            items = [self._stack.pop() for _ in range(TUPLES[name])]
            self._stack.append(tuple(reversed(items)))
        elif name in INSTRUCTIONS:
            INSTRUCTIONS[name](self, argument)
        else:
            raise SnapshotError(f"it uses the pickle instruction {name}, which nothing that is read here does")

    def _protocol(self, argument: object) -> None:
        if argument not in range(2, HIGHEST_PROTOCOL + 1):
            raise SnapshotError(f"it has pickle protocol {argument}: expected 2 to {HIGHEST_PROTOCOL}")

    def _ignore(self, argument: object) -> None:
        pass

    def _stop(self, argument: object) -> None:
        if len(self._stack) != 1 or self._below:
            raise IndexError("stack")

    def _mark(self, argument: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[object]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _tuple(self, argument: object) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _memoize(self, argument: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, argument: object) -> None:
        assert isinstance(argument, int)
        self._memo[argument] = self._stack[-1]

    def _get(self, argument: object) -> None:
        assert isinstance(argument, int)
        self._stack.append(self._memo[argument])

    def _append(self, items: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise SnapshotError("it appends to something that is no list")
        target.extend(items)

    def _add(self, items: list[object]) -> None:
        target = self._stack[-1]
        if type(target) is not set:
            raise SnapshotError("it adds to something that is no set")
        target.update(string_keys(items))

    def _set(self, items: list[object]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, RemarkedDict):
            raise SnapshotError("it sets items of something that is no dictionary")
        assert isinstance(target, dict)
        target.update(zip(string_keys(items[::2]), items[1::2], strict=True))

    def _global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise SnapshotError("it names a global by something that is no text")
        if (module, name) == ("dnnlib.tflib.network", "Network"):
            raise SnapshotError("it holds a TensorFlow network, of StyleGAN or StyleGAN2, which is not supported")
        stand_in = self._names.get((module, name))
        if stand_in is None:
            raise SnapshotError(
                f"it asks for {quoted(f'{module}.{name}')}, which no file of tensors needs and which could run code"
            )
        self._stack.append(stand_in)

    def _global_line(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._global(module, name)

    def _global_stack(self, argument: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(module, name)

    def _call(self, argument: object) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if type(called) is not StandIn or type(arguments) is not tuple:
            raise SnapshotError("it calls something that cannot be called")
        self._stack.append(called.replace(arguments))

    def _build(self, argument: object) -> None:
        self._stack.pop()
        if type(self._stack[-1]) not in (Placeholder, RemarkedDict):
            raise SnapshotError("it sets the state of something that has none")

    def _persistent_id(self, argument: object) -> None:
        if self._persistent is None:
            raise SnapshotError("it refers to data outside the file")
        self._stack.append(self._persistent(self._stack.pop()))


def string_keys(keys: list[object]) -> list[str]:
    """The keys as they are. Raises :class:`SnapshotError` when one is no string."""
    strings = [key for key in keys if type(key) is str]
    if len(strings) != len(keys):
        raise SnapshotError("it has a dictionary or a set whose keys are not all text")
    return strings


INSTRUCTIONS: dict[str, Callable[[Machine, object], None]] = {
    "PROTO": Machine._protocol,
    "FRAME": Machine._ignore,
    "STOP": Machine._stop,
    "MARK": Machine._mark,
    "TUPLE": Machine._tuple,
    "MEMOIZE": Machine._memoize,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._to_mark()),
    "ADDITEMS": lambda machine, _: machine._add(machine._to_mark()),
    "SETITEM": lambda machine, _: machine._set([machine._stack.pop(), machine._stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._set(machine._to_mark()),
    "GLOBAL": Machine._global_line,
    "STACK_GLOBAL": Machine._global_stack,
    "REDUCE": Machine._call,
    "NEWOBJ": Machine._call,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
"""The instructions that move more than one value; protocols 2 to 5 as far as torch and snapshots use them."""

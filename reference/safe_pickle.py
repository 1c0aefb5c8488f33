"""Pickles read as data: nothing that a file names is imported, and nothing in it is called (torch-free).

A pickle is a program for a small stack machine, and unpickling it the usual way calls whatever the program asks for. The machine
here knows the instructions that put values together. Where the program asks for an object of a class, or for the result of a
function, it gets a :class:`StandIn` that remembers what was asked for, unless the caller knows how to build that value itself.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

Builder = Callable[..., Any]


class PickleError(ValueError):
    """The file is no pickle, is damaged, or asks for something that is refused."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class StandIn:
    """What stands where a pickle asks for an object.

    Attributes:
        what: the class or function asked for; something else only in a pickle that no pickler has written.
        arguments: what it was to be called with.
        state: what was to become its attributes, usually a dict by name.
        items: what was to be appended (list items) or set (pairs of key and value).
    """

    what: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The name of its class, also where an old pickle asks for it in a roundabout way."""
        what = self.what
        if isinstance(what, Name) and what.name == "_reconstructor" and self.arguments:
            what = self.arguments[0]
        return str(what) if isinstance(what, Name) else "object without a class"


def read_pickle(
    file: BinaryIO,
    builders: Mapping[str, Builder] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle that begins at the file's position, which is left behind the pickle.

    Args:
        file: open for reading.
        builders: functions of ours by the full name of the function or class that they replace; they get the same arguments.
            Ordered dictionaries and sets are always built.
        persistent: the value of an object that the pickle only refers to; without it such references are refused.

    Raises:
        PickleError: anything that keeps the value from being read.
    """
    machine = _Machine({**_CONTAINERS, **(builders or {})}, persistent)
    try:
        return machine.run(file)
    except PickleError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, RuntimeError, struct.error) as error:
        raise PickleError(f"it is damaged or no pickle ({' '.join(str(error).split())})") from error


_CONTAINERS: dict[str, Builder] = {
    "collections.OrderedDict": dict,
    "builtins.set": set,
    "__builtin__.set": set,
}


class _Machine:
    """Stack, marks and memo of a pickle that is being read."""

    def __init__(self, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None) -> None:
        self.builders, self.persistent = builders, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks that marks have set aside
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _CONSTANTS:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise PickleError(f"its instruction {opcode.name} is refused")
        raise PickleError("it has no end")

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """The values above the last mark, which goes."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_mark(self, _: Any) -> None:
        self.since_mark()

    def keep(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def recall(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def few(self, count: int) -> None:
        """The topmost values become a tuple."""
        if len(self.stack) < count:
            raise PickleError("it takes values that it has not put there")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, (list, StandIn)):
            (target if isinstance(target, list) else target.items).extend(values)
        elif isinstance(target, set):
            target.update(values)
        else:
            raise PickleError(f"it appends to a {type(target).__name__}")

    def set_items(self, flat: list[Any]) -> None:
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, StandIn):
            target.items.extend(pairs)
        else:
            raise PickleError(f"it sets items of a {type(target).__name__}")

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("it names a class by something that is no text")
        self.stack.append(Name(module, name))

    def make(self, what: Any, arguments: Any) -> None:
        """An object or the result of a call: built by a builder of ours, else a stand-in."""
        if not isinstance(arguments, tuple):
            raise PickleError("it calls something with arguments that are no tuple")
        builder = self.builders.get(str(what)) if isinstance(what, Name) else None
        self.stack.append(StandIn(what, arguments) if builder is None else builder(*arguments))

    def call(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.make(what, arguments)

    def call_with_names(self, _: Any) -> None:
        named, positional, what = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(StandIn(what, (*positional, named)))

    def instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.make(Name(module, name), tuple(self.since_mark()))

    def instance_from_stack(self, _: Any) -> None:
        what, *arguments = self.since_mark()
        self.make(what, tuple(arguments))

    def set_state(self, _: Any) -> None:
        """Attributes of a stand-in; containers and tensors that a builder has made need none."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state

    def refer(self, _: Any) -> None:
        if self.persistent is None:
            raise PickleError("it refers to something outside")
        self.stack.append(self.persistent(self.stack.pop()))


_CONSTANTS = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT NONE""".split()
)

# Not here, so refused: EXT1 EXT2 EXT4 (a number for a class, in a table of the reading program), PERSID and the out-of-band
# buffers, none of which torch.save writes.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "PUT": _Machine.keep,
    "BINPUT": _Machine.keep,
    "LONG_BINPUT": _Machine.keep,
    "MEMOIZE": _Machine.keep,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "LIST": lambda machine, _: _push(machine, machine.since_mark()),
    "FROZENSET": lambda machine, _: _push(machine, frozenset(machine.since_mark())),
    "DICT": lambda machine, _: _push_dict(machine, machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.few(1),
    "TUPLE2": lambda machine, _: machine.few(2),
    "TUPLE3": lambda machine, _: machine.few(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "INST": _Machine.instance,
    "OBJ": _Machine.instance_from_stack,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.refer,
}


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _push_dict(machine: _Machine, flat: list[Any]) -> None:
    machine.stack.append({})
    machine.set_items(flat)

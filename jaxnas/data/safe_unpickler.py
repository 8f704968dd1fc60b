"""A reader of pickled numbers, strings and containers that can run nothing.

A pickle is a program for a stack machine, and the standard one calls whatever the program names.
This machine knows the instructions of plain data only (protocols 2 to 5). A name is looked up in
`GLOBALS` and stays a mere word: "calling" it builds one of a few plain Python values here, so
neither an imported function nor NumPy's own unpickling ever sees the file's contents.

What a hostile file may cost is bounded too. Instructions are at most `MAX_INSTRUCTIONS`, one makes
at most one object, and none copies or multiplies what exists, so memory is at most some 100 MB
beside the file, whose own bytes bound every string. Dictionary keys are short strings, 32-bit
integers and pairs of these, so that hashing neither recurses nor collides on purpose. Nothing here
recurses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

MAX_INSTRUCTIONS = 500_000  # ten times those of a record of NATS-Bench
MAX_LINE = 200  # bytes of a name that ends with its line
MAX_KEY = 200  # characters of a dictionary's key
GLOBALS = frozenset({
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),  # as NumPy 2 writes it
})
SCALAR_FORMATS = {  # NumPy's code of a type -> struct's
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}

Container = TypeVar("Container", list, dict)


class PickleRefused(ValueError):
    """The bytes are no pickle, are damaged, or ask for more than plain data."""


class _Global:
    """A name of `GLOBALS` that the file mentioned."""

    def __init__(self, name: str):
        self.name = name


class _ScalarType:
    """What stands for a numpy.dtype: struct's format, and the byte order that BUILD gives."""

    def __init__(self, letter: str):
        self.letter = letter
        self.order = "<"


def loads(data: bytes) -> object:
    """Read one pickled value made of None, booleans, numbers, strings, bytes and containers.

    An OrderedDict is read as a dict, a NumPy scalar as a Python number.

    Raises:
      PickleRefused: what was asked for, or where the damage is.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise PickleRefused(f"it is damaged after byte {machine.position}") from error


class _Machine:
    """The stack machine; `INSTRUCTIONS` numbers what it can do."""

    def __init__(self, data: bytes):
        self.data = data
        self.position = 0
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below the open marks
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        data, memo, double = self.data, self.memo, struct.Struct(">d").unpack_from
        position = 0
        for _ in range(MAX_INSTRUCTIONS):
            code = data[position]
            position += 1
            # Nine in ten instructions are these four; written out here they halve the time of a
            # record, of which a benchmark has 15,625.
            if code == FLOAT:
                self.stack.append(double(data, position)[0])
                position += 8
            elif code == MEMOIZE:
                memo[len(memo)] = self.stack[-1]
            elif code == BYTE:
                self.stack.append(data[position])
                position += 1
            elif code == TEXT:
                start = position + 1
                position = start + data[position]
                if position > len(data):
                    raise PickleRefused(f"it is cut off at byte {len(data)}")
                self.stack.append(data[start:position].decode("utf-8"))
            elif code == STOP:
                if self.outer or len(self.stack) != 1 or position != len(data):
                    raise PickleRefused("it does not end with its one value")
                return self.stack[0]
            elif code in INSTRUCTIONS:
                self.position = position
                INSTRUCTIONS[code](self)
                position = self.position
            else:
                raise PickleRefused(f"instruction {code:#04x} is not one of plain data")
        raise PickleRefused(f"it has more than {MAX_INSTRUCTIONS} instructions")

    # ---- arguments in the file

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise PickleRefused(f"it is cut off at byte {len(self.data)}")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE)
        if end < 0:
            raise PickleRefused(f"a name does not end near byte {self.position}")
        return self.take(end + 1 - self.position)[:-1].decode("utf-8")

    def long(self) -> int:
        size = self.number(1)
        if size > 8:
            raise PickleRefused(f"it holds an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def items(self) -> list:
        """Return what was pushed since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    # ---- containers

    def target(self, kind: type[Container]) -> Container:
        value = self.stack[-1]
        if type(value) is not kind:
            raise PickleRefused(f"it adds items to a {type(value).__name__}")
        return value

    def append(self) -> None:
        value = self.stack.pop()
        self.target(list).append(value)

    def appends(self) -> None:
        items = self.items()
        self.target(list).extend(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.target(dict)[_checked_key(key)] = value

    def set_items(self) -> None:
        items = self.items()
        if len(items) % 2:
            raise PickleRefused("it holds a key without a value")
        target = self.target(dict)
        for key, value in zip(items[::2], items[1::2]):
            target[_checked_key(key)] = value

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise PickleRefused(f"it is damaged after byte {self.position}")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    # ---- what is said twice

    def put(self, size: int) -> None:
        self.memo[self.number(size)] = self.stack[-1]

    # ---- names, and what they build

    def named(self, module: object, name: object) -> None:
        if (module, name) not in GLOBALS:
            raise PickleRefused(f"it asks for {f'{module}.{name}'[:80]!r}, which is not plain data")
        self.stack.append(_Global(str(name)))

    def global_lines(self) -> None:
        module = self.line()
        self.named(module, self.line())

    def global_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleRefused("it asks for a name that is not text")
        self.named(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise PickleRefused("it calls what is not a known name")
        self.stack.append(_BUILDERS[function.name](arguments))

    def build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if (
            type(value) is not _ScalarType or type(state) is not tuple or len(state) < 2
            or type(state[1]) is not str or state[1] not in ("<", ">", "=", "|")
        ):
            raise PickleRefused(f"it sets the state of a {type(value).__name__}")
        value.order = state[1]


def _checked_key(key: object) -> object:
    if not (_is_plain(key) or type(key) is tuple and len(key) == 2 and all(map(_is_plain, key))):
        raise PickleRefused("a key is neither short text, nor a small number, nor a pair of these")
    return key


def _is_plain(key: object) -> bool:
    if type(key) is str:
        return len(key) <= MAX_KEY
    return type(key) is int and -(1 << 31) <= key < 1 << 31


def _ordered_dict(arguments: tuple) -> dict:
    if arguments:
        raise PickleRefused("OrderedDict has arguments")
    return {}


def _scalar_type(arguments: tuple) -> _ScalarType:
    code = arguments[0] if arguments else None
    if type(code) is not str or code not in SCALAR_FORMATS:
        kind = f"{code[:20]!r}" if type(code) is str else type(code).__name__
        raise PickleRefused(f"the type {kind} is not one of {', '.join(SCALAR_FORMATS)}")
    return _ScalarType(SCALAR_FORMATS[code])


def _scalar(arguments: tuple) -> float | int | bool:
    if [type(a) for a in arguments] != [_ScalarType, bytes]:
        raise PickleRefused("a scalar is not made of a type and bytes")
    kind, data = arguments
    return struct.unpack(("<" if kind.order in "=|" else kind.order) + kind.letter, data)[0]


_BUILDERS: dict[str, Callable[[tuple], object]] = {
    "OrderedDict": _ordered_dict, "dtype": _scalar_type, "scalar": _scalar}


def _pusher(read: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    def push(machine: _Machine) -> None:
        value = read(machine)  # which may change the stack
        machine.stack.append(value)

    return push


FLOAT, MEMOIZE, BYTE, TEXT, STOP = ord("G"), 0x94, ord("K"), 0x8C, ord(".")
INSTRUCTIONS: dict[int, Callable[[_Machine], object]] = {  # numbered as Python's format does
    0x80: lambda m: m.take(1),  # the protocol
    0x95: lambda m: m.take(8),  # the size of a frame
    ord("N"): _pusher(lambda m: None),
    0x88: _pusher(lambda m: True),
    0x89: _pusher(lambda m: False),
    ord("M"): _pusher(lambda m: m.number(2)),
    ord("J"): _pusher(lambda m: int.from_bytes(m.take(4), "little", signed=True)),
    0x8A: _pusher(_Machine.long),
    ord("X"): _pusher(lambda m: m.take(m.number(4)).decode("utf-8")),
    ord("C"): _pusher(lambda m: m.take(m.number(1))),
    ord("B"): _pusher(lambda m: m.take(m.number(4))),
    ord("]"): _pusher(lambda m: []),
    ord("}"): _pusher(lambda m: {}),
    ord(")"): _pusher(lambda m: ()),
    ord("("): _Machine.mark,
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): _pusher(lambda m: tuple(m.items())),
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    ord("q"): lambda m: m.put(1),
    ord("r"): lambda m: m.put(4),
    ord("h"): _pusher(lambda m: m.memo[m.number(1)]),
    ord("j"): _pusher(lambda m: m.memo[m.number(4)]),
    ord("c"): _Machine.global_lines,
    0x93: _Machine.global_stack,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}

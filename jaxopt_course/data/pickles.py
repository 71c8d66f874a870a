"""A reader of pickles that does not execute them.

A pickle is a program, and `pickle.load` runs it. This module reads the subset of that language that is needed for plain
data: dictionaries, lists, tuples, text, bytes, integers and arrays of bytes. The few global names that such arrays need
are in a table, and the functions that they refer to are never called.
"""

import enum
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from jaxopt_course.data.archives import DataFileError

OPCODES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
MAX_STEPS = 200_000  # a batch of CIFAR-10 takes 30,000 to 60,000


class Name(enum.Enum):
    """The global names that a pickled array refers to: NumPy's functions and types for creating an array."""

    RECONSTRUCT = enum.auto()
    FROMBUFFER = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()  # how bytes are written before protocol 3
    UINT8 = enum.auto()  # a dtype, the only one


NAMES = {
    "numpy.core.multiarray _reconstruct": Name.RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": Name.RECONSTRUCT,
    "numpy.core.numeric _frombuffer": Name.FROMBUFFER,
    "numpy._core.numeric _frombuffer": Name.FROMBUFFER,
    "numpy ndarray": Name.NDARRAY,
    "numpy dtype": Name.DTYPE,
    "_codecs encode": Name.ENCODE,
}


class Array:
    """An array under construction; it has no values until its state has been read."""

    values: np.ndarray | None = None


def read_pickle(data: bytes, where: str) -> dict[str, Any]:
    """Return the dictionary in a pickle of any protocol, without executing anything in it.

    Python 2 text and bytes are returned as memoryviews into `data`, and arrays of uint8 as views of it. Memory use is
    therefore at most a few times the file size, whatever sizes the file claims. Keys become text.

    Raises:
      DataFileError: the pickle is damaged, or contains anything other than plain data.
    """
    return _Reader(data, where).read()


def text(value: Any) -> str | None:
    """Return text, including text that Python 2 wrote as bytes; None for anything else."""
    if isinstance(value, memoryview):
        return str(value, "latin-1")
    return value if isinstance(value, str) else None


class _Reader:
    """The stack machine of the `pickle` module, with a stack, a memo and marks, but without opcodes that call code."""

    def __init__(self, data: bytes, where: str):
        self.data, self.view, self.at, self.where = data, memoryview(data), 0, where
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def read(self) -> dict[str, Any]:
        for _ in range(MAX_STEPS):
            opcode = bytes(self.take(1))
            if opcode == pickle.STOP:
                return self.result()
            self.step(opcode)
        raise self.wrong(f"it takes more than {MAX_STEPS:,} steps")

    def result(self) -> dict[str, Any]:
        top = self.pop(dict)
        for key, value in top.items():
            if isinstance(value, Array):
                if value.values is None:
                    raise self.wrong(f"the array {key[:100]!r} has no values")
                top[key] = value.values
        return top

    def step(self, opcode: bytes) -> None:
        push = self.stack.append
        match opcode:
            case pickle.BININT1:
                push(self.whole(1))
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self.memo[self.whole(1 if opcode == pickle.BINPUT else 4)] = self.top()
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = self.top()
            case pickle.SHORT_BINSTRING | pickle.SHORT_BINBYTES:
                push(self.take(self.whole(1)))
            case pickle.SHORT_BINUNICODE:
                push(self.decoded(self.take(self.whole(1))))
            case pickle.BINSTRING | pickle.BINBYTES:
                push(self.take(self.whole(4)))
            case pickle.BINBYTES8 | pickle.BYTEARRAY8:
                push(self.take(self.whole(8)))
            case pickle.BINUNICODE:
                push(self.decoded(self.take(self.whole(4))))
            case pickle.BINUNICODE8:
                push(self.decoded(self.take(self.whole(8))))
            case pickle.UNICODE:
                push(self.decoded(self.line(), "raw-unicode-escape"))
            case pickle.BININT2:
                push(self.whole(2))
            case pickle.BININT:
                push(self.whole(4, signed=True))
            case pickle.LONG1:
                push(self.whole(self.whole(1), signed=True))
            case pickle.INT | pickle.LONG:
                push(self.written_number(opcode))
            case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
                push({pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}[opcode])
            case pickle.BINGET | pickle.LONG_BINGET:
                push(self.remembered(self.whole(1 if opcode == pickle.BINGET else 4)))
            case pickle.GET:
                push(self.remembered(self.written_number(opcode)))
            case pickle.PUT:
                self.memo[self.written_number(opcode)] = self.top()
            case pickle.MARK:
                self.outer.append(self.stack)
                self.stack = []
            case pickle.EMPTY_DICT | pickle.EMPTY_LIST | pickle.EMPTY_TUPLE:
                push({pickle.EMPTY_DICT: dict, pickle.EMPTY_LIST: list, pickle.EMPTY_TUPLE: tuple}[opcode]())
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                count = ord(opcode) - ord(pickle.TUPLE1) + 1
                self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))
            case pickle.TUPLE | pickle.LIST:
                items = self.since_mark()
                self.stack.append(items if opcode == pickle.LIST else tuple(items))
            case pickle.DICT:
                items = self.since_mark()
                self.stack.append({})
                self.set_items(items)
            case pickle.APPEND:
                value = self.pop()
                self.top(list).append(value)
            case pickle.APPENDS:
                items = self.since_mark()
                self.top(list).extend(items)
            case pickle.SETITEM:
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case pickle.SETITEMS:
                self.set_items(self.since_mark())
            case pickle.GLOBAL:
                push(self.name(self.line(), self.line()))
            case pickle.STACK_GLOBAL:
                name, module = self.pop(str), self.pop(str)
                self.stack.append(self.name(module.encode("utf-8", "replace"), name.encode("utf-8", "replace")))
            case pickle.REDUCE:
                args, name = self.pop(tuple), self.pop(Name)
                self.stack.append(self.result_of_call(name, args))
            case pickle.BUILD:
                self.build(self.pop(tuple))
            case pickle.PROTO:
                if self.whole(1) > 5:
                    raise self.wrong("its protocol is not known")
            case pickle.FRAME:
                self.take(8)  # the length of the frame, which is not needed: all data is in memory
            case _:
                raise self.wrong(f"{OPCODES.get(opcode.decode('latin-1'), opcode)} has no place in plain data")

    def result_of_call(self, name: Name, args: tuple[Any, ...]) -> Any:
        """Return the result that calling the name would give, for the few calls in a pickled array."""
        match name, args:
            case Name.ENCODE, (str() as characters, "latin1"):
                try:
                    return memoryview(characters.encode("latin-1"))
                except UnicodeEncodeError:
                    raise self.wrong("bytes are spelt with characters beyond 255") from None
            case Name.DTYPE, (kind, *_):
                if text(kind) != "u1":
                    raise self.wrong(f"an array of dtype {(text(kind) or '?')[:20]!r}; the pixels are 'u1', bytes")
                return Name.UINT8
            case Name.RECONSTRUCT, (Name.NDARRAY, shape, _):
                if shape != (0,):
                    raise self.wrong("an array claims a shape before its values are read")
                return Array()
            case Name.FROMBUFFER, (values, Name.UINT8, shape, order):
                array = Array()
                self.fill(array, shape, values, text(order) == "F")
                return array
        raise self.wrong(f"{name.name.lower()} is called in a way that no array needs")

    def build(self, state: tuple[Any, ...]) -> None:
        match self.top(), state:
            case Name.UINT8, _:  # byte order and fields, which uint8 does not have
                pass
            case Array() as array, (_, shape, Name.UINT8, fortran, values):
                self.fill(array, shape, values, fortran is True or fortran == 1)
            case _:
                raise self.wrong("the state of an array is not what NumPy writes")

    def fill(self, array: Array, shape: Any, values: Any, fortran: bool) -> None:
        if not isinstance(shape, tuple) or not 1 <= len(shape) <= 2 or any(type(n) is not int or n < 1 for n in shape):
            raise self.wrong("an array must have one or two dimensions, each at least 1")
        if not isinstance(values, memoryview) or values.nbytes != math.prod(shape):
            raise self.wrong("an array claims a shape that does not match the size of its values")
        array.values = np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")

    def name(self, module: bytes | memoryview, name: bytes | memoryview) -> Name:
        written = f"{str(module, 'utf-8', 'replace')} {str(name, 'utf-8', 'replace')}"
        if written not in NAMES:
            raise self.wrong(f"it names {written[:100]!r}, which is not plain data; nothing was executed")
        return NAMES[written]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=False):
            written = text(key)
            if written is None:
                raise self.wrong("the key of a dictionary is not text")
            target[written] = value
        if len(items) % 2:
            raise self.wrong("a key of a dictionary has no value")

    def take(self, count: int) -> memoryview:
        if count > len(self.view) - self.at:
            raise self.wrong(f"it claims {count:,} bytes where {len(self.view) - self.at:,} are left")
        self.at += count
        return self.view[self.at - count : self.at]

    def line(self) -> memoryview:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise self.wrong("it ends in the middle of a line")
        return self.take(end + 1 - self.at)[:-1]

    def whole(self, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def written_number(self, opcode: bytes) -> int:
        written = bytes(self.line())
        if opcode == pickle.INT and written in (b"00", b"01"):
            return written == b"01"
        if not re.fullmatch(rb"-?[0-9]{1,18}L?", written):
            raise self.wrong(f"{written[:20]!r} stands where a whole number should")
        return int(written.rstrip(b"L"))

    def decoded(self, written: memoryview, codec: str = "utf-8") -> str:
        try:
            return str(written, codec, "strict")
        except UnicodeDecodeError:
            raise self.wrong("text is not valid Unicode") from None

    def remembered(self, number: int) -> Any:
        if number not in self.memo:
            raise self.wrong(f"it refers to memo {number}, which is not there")
        return self.memo[number]

    def since_mark(self) -> list[Any]:
        items = self.stack
        if not self.outer:
            raise self.wrong("a mark is missing")
        self.stack = self.outer.pop()
        return items

    def top(self, kind: type = object) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self.wrong(f"a value of type {kind.__name__} is missing where one is used")
        return self.stack[-1]

    def pop(self, kind: type = object) -> Any:
        self.top(kind)
        return self.stack.pop()

    def wrong(self, what: str) -> DataFileError:
        return DataFileError(f"{self.where} is not a pickle of plain data: at byte {self.at:,}, {what}")

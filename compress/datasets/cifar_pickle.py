"""The python batches of CIFAR-10 and CIFAR-100, without unpickling: their opcodes are interpreted, nothing is called.

The authors wrote these files with Python 2 (protocol 2). A pickle is a program for a stack machine that may call any
function it names. Here every opcode that those batches use is given its one harmless meaning, the only names known are
those of numpy's array and dtype, which stay names, and everything else is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.datasets.base import UInt8Array


class UnsafePickleError(Exception):
    """The bytes are no batch of CIFAR; the message says what came and where."""


@dataclass(frozen=True)
class _Name:
    """A name that the pickle would import; it is never looked up."""

    text: str


@dataclass
class _Array:
    """An array that REDUCE has announced and BUILD fills."""

    values: UInt8Array | None = None


_RECONSTRUCT = _Name("numpy.core.multiarray _reconstruct")
_NDARRAY = _Name("numpy ndarray")
_DTYPE = _Name("numpy dtype")
_NAMES = {name.text: name for name in (_RECONSTRUCT, _NDARRAY, _DTYPE)}
_BYTES = _Name("uint8")
# What numpy of that time wrote for uint8: version, byte order, no subtype, names or fields, sizes left open, no flags.
_BYTES_STATE = (3, "|", None, None, None, -1, -1, 0)
_MARK = object()

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_batch(content: bytes) -> dict[str, Any]:
    """Return the dict of a batch: text, lists of whole numbers and text, and uint8 arrays.

    Raises UnsafePickleError for anything that such a batch does not hold.
    """
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(io.BytesIO(content)):
            if opcode.name == "STOP":
                return _batch(machine.stack)
            machine.step(opcode.name, argument, position or 0)
    except (ValueError, IndexError, TypeError) as error:  # cut short, an unknown opcode, an operand that is not there
        raise UnsafePickleError(f"no whole pickle: {str(error)[:120]}") from error
    raise UnsafePickleError("no whole pickle: it has no STOP")


def _batch(stack: list[Any]) -> dict[str, Any]:
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise UnsafePickleError("it does not hold a dict")
    return {key: value.values if isinstance(value, _Array) else value for key, value in stack[0].items()}


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._pack(len(self.stack) - _TUPLES[name])
        elif (action := _ACTIONS.get(name)) is not None:
            try:
                action(self, argument)
            except UnsafePickleError as error:
                raise UnsafePickleError(f"{error} (at byte {position:,})") from None
        else:
            raise UnsafePickleError(f"opcode {name}, which no batch of CIFAR uses (at byte {position:,})")

    def _pack(self, first: int) -> None:
        if first < 0:
            raise UnsafePickleError("a tuple of more than there is")
        self.stack[first:] = [tuple(self.stack[first:])]

    def _since_mark(self) -> list[Any]:
        first = next((i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK), None)
        if first is None:
            raise UnsafePickleError("a mark is missing")
        items = self.stack[first + 1 :]
        del self.stack[first:]
        return items

    def protocol(self, argument: int) -> None:
        if argument != 2:
            raise UnsafePickleError(f"protocol {argument}, expected 2")

    def mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def empty_dict(self, _: None) -> None:
        self.stack.append({})

    def empty_list(self, _: None) -> None:
        self.stack.append([])

    def empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def pack_marked(self, _: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise UnsafePickleError(f"nothing was kept as {index}")
        self.stack.append(self.memo[index])

    def append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UnsafePickleError("items for something that is no list")
        self.stack[-1].extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self, _: None) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise UnsafePickleError("a dict whose keys are not text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def name(self, argument: str) -> None:
        if argument not in _NAMES:
            raise UnsafePickleError(f"it names {argument!r}, expected numpy's array and dtype only")
        self.stack.append(_NAMES[argument])

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function is _RECONSTRUCT and arguments == (_NDARRAY, (0,), "b"):
            self.stack.append(_Array())
        elif function is _DTYPE and arguments == ("u1", 0, 1):
            self.stack.append(_BYTES)
        else:
            raise UnsafePickleError("a call that is not numpy's for an array of bytes")

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if target is _BYTES and state == _BYTES_STATE:
            return
        if not isinstance(target, _Array) or target.values is not None:
            raise UnsafePickleError("a state for something that is no array")
        target.values = _array(state)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "MARK": _Machine.mark,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_TUPLE": _Machine.empty_tuple,
    "TUPLE": _Machine.pack_marked,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _array(state: Any) -> UInt8Array:
    """Return the array of a state (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise UnsafePickleError("an array of another form than numpy's")
    version, shape, dtype, fortran, text = state
    if version != 1 or dtype is not _BYTES or fortran is not False or not isinstance(text, str):
        raise UnsafePickleError("an array that is not of bytes in C order")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise UnsafePickleError("an array without a shape")
    values = np.frombuffer(text.encode("latin-1"), dtype=np.uint8)  # how pickletools gives a byte string
    try:
        return values.reshape(shape)
    except ValueError:
        raise UnsafePickleError(f"an array of shape {shape} with {len(values):,} bytes") from None

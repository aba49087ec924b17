"""Protobuf's wire format, read without protobuf: a message is a sequence of (field number, wire type, value)."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(Exception):
    """The bytes are no whole message."""


def fields_of(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value): an int for a varint, a view of the bytes otherwise."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number}")
        if wire_type == VARINT:
            integer, at = _varint(message, at)
            yield number, wire_type, integer
            continue
        if wire_type == BYTES:
            length, at = _varint(message, at)
        elif wire_type in (FIXED64, FIXED32):
            length = 8 if wire_type == FIXED64 else 4
        else:  # groups, which ONNX never had, and the two unused types
            raise WireError(f"wire type {wire_type}")
        if length > end - at:
            raise WireError(f"it ends {length - (end - at)} bytes too early")
        yield number, wire_type, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):  # 10 groups of 7 bits hold 64
        if at >= len(message):
            raise WireError("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise WireError("a number longer than 64 bits")


def as_integer(wire_type: int, value: int | memoryview) -> int:
    if wire_type != VARINT or not isinstance(value, int):
        raise WireError("a field that should be a number is not")
    return value - (1 << 64) if value >= 1 << 63 else value


def as_message(wire_type: int, value: int | memoryview) -> memoryview:
    if wire_type != BYTES or isinstance(value, int):
        raise WireError("a field that should be a message is not")
    return value


def as_text(wire_type: int, value: int | memoryview) -> str:
    # Text is only shown and compared, so undecodable bytes become a visible mark instead of an error.
    return bytes(as_message(wire_type, value)).decode("utf-8", errors="replace")

"""Protocol buffers' wire format, as far as reading a few fields of known messages needs it.

A message is a run of fields, each a key (field number and wire type) and a value. Unknown fields
are passed over, as the format demands. Every length is checked against what is there; nothing
recurses. Source: the encoding guide of Protocol Buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | memoryview


class Malformed(ValueError):
    """Bytes are not what their format says; the reader that knows the file's name reports it."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the unsigned number at a position, and the position behind it."""
    result = 0
    for i in range(10):
        if at + i >= len(data):
            raise Malformed("a number runs past the end")
        byte = data[at + i]
        result |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if result >= 1 << 64:
                break
            return result, at + i + 1
    raise Malformed("a number has more than 64 bits")


def signed(value: int) -> int:
    """Return what int32 and int64 fields mean by an unsigned 64-bit number."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value): numbers as unsigned integers, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise Malformed("a field has the number 0")
        if wire_type == 0:
            value, at = varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = varint(message, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise Malformed(f"a field has the wire type {wire_type}")
        if size > len(message) - at:
            raise Malformed("a field runs past the end")
        part = message[at : at + size]
        at += size
        yield number, part if wire_type == 2 else int.from_bytes(part, "little")


def submessage(value: Value) -> memoryview:
    """Return the bytes of a message, string or packed field."""
    if isinstance(value, int):
        raise Malformed("a field is a number where bytes are meant")
    return value


def number(value: Value) -> int:
    """Return a number that is not negative, as all are that we read."""
    if not isinstance(value, int):
        raise Malformed("a field holds bytes where a number is meant")
    return value


def text(value: Value) -> str:
    """Return a string field."""
    try:
        return bytes(submessage(value)).decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("a text is not UTF-8") from None


def packed_numbers(value: Value) -> list[int]:
    """Return a repeated number field, packed or not, of one key's value."""
    if isinstance(value, int):
        return [signed(value)]
    result, at = [], 0
    while at < len(value):
        item, at = varint(value, at)
        result.append(signed(item))
    return result


def float32(value: Value) -> float:
    """Return a float field."""
    return float(struct.unpack("<f", (number(value) & 0xFFFFFFFF).to_bytes(4, "little"))[0])

"""Snappy's block format, decompression only: leveldb tables may be compressed with it.

A stream is its uncompressed length, then literals and copies of what was already written. Source:
format_description.txt of google/snappy.
"""

from __future__ import annotations

from delfsearch.extraction.weights_io.protobuf import Malformed, varint


def decompress(data: memoryview, *, max_bytes: int) -> bytes:
    """Return the uncompressed bytes; raises Malformed where damaged or more than max_bytes."""
    size, at = varint(data, 0)
    if size > max_bytes:
        raise Malformed(f"a compressed block claims {size} bytes")
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        kind, length = tag & 3, (tag >> 2) + 1
        n_extra = 0
        if kind == 0:
            n_extra = max(0, length - 60)
        else:
            n_extra = (0, 1, 2, 4)[kind]
        if at + n_extra > len(data):
            raise Malformed("a compressed block is cut off")
        extra = int.from_bytes(data[at : at + n_extra], "little")
        at += n_extra
        if kind == 0:
            length = extra + 1 if n_extra else length
            if length > len(data) - at:
                raise Malformed("a compressed block is cut off")
            out += data[at : at + length]
            at += length
        else:
            offset = extra
            if kind == 1:
                length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | extra
            if not 0 < offset <= len(out):
                raise Malformed("a compressed block copies from before its start")
            if offset >= length:
                start = len(out) - offset
                out += out[start : start + length]
            else:  # the copy overlaps what it writes: a run
                pattern = bytes(out[-offset:])
                out += (pattern * (length // offset + 1))[:length]
        if len(out) > size:
            raise Malformed("a compressed block is longer than it says")
    if len(out) != size:
        raise Malformed("a compressed block is shorter than it says")
    return bytes(out)

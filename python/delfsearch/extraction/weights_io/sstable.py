"""Sorted string tables, leveldb's file format, in which TensorFlow keeps the index of a checkpoint.

    data blocks, [meta blocks], metaindex block, index block, footer

A block is a run of entries (shared key prefix length, rest of the key, value), an array of restart
positions, which only searches need, and a trailer: compression type and masked CRC-32C. The index
block's values are the (offset, size) of the data blocks. The footer, 48 bytes, holds the handles of
the last two and a magic number. Tables of checkpoints are small and are read whole. Source:
table_format.md of google/leveldb.
"""

from __future__ import annotations

from collections.abc import Iterator

from delfsearch.extraction.weights_io.crc32c import crc32c, unmask
from delfsearch.extraction.weights_io.protobuf import Malformed, varint
from delfsearch.extraction.weights_io.snappy import decompress

MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
# What a table may unfold to: a few bytes can share a long key, or be compressed.
_MAX_UNFOLDED = 64 << 20


def read_table(data: memoryview) -> dict[bytes, bytes]:
    """Return the entries of a table, keys rising.

    Raises Malformed where a checksum, length or order is wrong, or the entries unfold to more than
    64 MiB.
    """
    if len(data) < _FOOTER_BYTES:
        raise Malformed(f"it has {len(data)} bytes, fewer than a footer")
    footer = data[len(data) - _FOOTER_BYTES :]
    if int.from_bytes(footer[40:], "little") != MAGIC:
        raise Malformed("its magic number is not that of a table; it is cut off or something else")
    _, at = _handle(footer, 0)  # the metaindex holds nothing that a checkpoint needs
    index, _ = _handle(footer, at)
    budget = _Budget(_MAX_UNFOLDED)
    result: dict[bytes, bytes] = {}
    last: bytes | None = None
    end = 0
    for _, place in _entries(_block(data, index, budget), budget):
        handle, _ = _handle(memoryview(place), 0)
        if handle[0] < end:  # or a small file could have us look at its blocks without end
            raise Malformed("its blocks overlap")
        end = sum(handle)
        for key, value in _entries(_block(data, handle, budget), budget):
            if last is not None and key <= last:
                raise Malformed(f"key {key[:80]!r} is out of order")
            result[key] = value
            last = key
    return result


class _Budget:
    def __init__(self, n_bytes: int) -> None:
        self.left = n_bytes

    def spend(self, n_bytes: int) -> None:
        self.left -= n_bytes
        if self.left < 0:
            raise Malformed(f"its entries unfold to more than {_MAX_UNFOLDED >> 20} MiB")


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: memoryview, handle: tuple[int, int], budget: _Budget) -> memoryview:
    offset, size = handle
    if offset + size + _TRAILER_BYTES > len(data):
        raise Malformed("a block lies past the end; the file is cut off")
    stored = data[offset + size + 1 : offset + size + _TRAILER_BYTES]
    if crc32c(data[offset : offset + size + 1]) != unmask(int.from_bytes(stored, "little")):
        raise Malformed("a block does not match its checksum")
    block, kind = data[offset : offset + size], data[offset + size]
    if kind == 0:
        return block
    if kind != 1:
        raise Malformed(f"a block has the unknown compression type {kind}")
    content = decompress(block, max_bytes=max(0, budget.left))
    budget.spend(len(content))
    return memoryview(content)


def _entries(block: memoryview, budget: _Budget) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise Malformed("a block is too short")
    n_restarts = int.from_bytes(block[len(block) - 4 :], "little")
    end = len(block) - 4 - 4 * n_restarts
    if end < 0:
        raise Malformed("a block has more restart points than bytes")
    block, at, key = block[:end], 0, b""
    while at < len(block):
        shared, at = varint(block, at)
        n_rest, at = varint(block, at)
        n_value, at = varint(block, at)
        if shared > len(key) or n_rest + n_value > len(block) - at:
            raise Malformed("an entry runs past its block")
        budget.spend(shared + n_rest + n_value + 64)
        key = key[:shared] + bytes(block[at : at + n_rest])
        yield key, bytes(block[at + n_rest : at + n_rest + n_value])
        at += n_rest + n_value

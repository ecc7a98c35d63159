"""TensorFlow's tensor bundles: checkpoints and the variables of SavedModels, with NumPy alone.

PREFIX.index is a sorted string table from tensor names to where the tensor lies (dtype, shape,
shard, offset, size, masked CRC-32C), the empty name being the header. PREFIX.data-SSSSS-of-NNNNN
hold the bytes. A partitioned tensor's entry lists slices, each of which has an entry of its own
under a name in an order-preserving code. Tensors are read when asked for, after their size has been
compared with shape, dtype and file, so that no number in the file can exhaust memory. Source:
tensor_bundle.proto, tensor_bundle.h and ordered_code.h of TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import WeightsError
from delfsearch.extraction.weights_io.crc32c import crc32c, unmask
from delfsearch.extraction.weights_io.protobuf import (
    Malformed,
    fields,
    number,
    packed_numbers,
    signed,
    submessage,
    varint,
)
from delfsearch.extraction.weights_io.sstable import read_table

INDEX_SUFFIX = ".index"
_VERSION = 1  # of the format, tensor_bundle.cc
_MAX_INDEX_BYTES = 16 << 20  # some 200,000 tensors
_MAX_STRING_BYTES = 16 << 20
_MAX_RANK = 32  # NumPy's, in its older versions

_STRING, _BFLOAT16 = 7, 14
# DataType of types.proto; the names serve errors, None is what NumPy has no type for.
_DTYPES: dict[int, tuple[str, str | None]] = {
    1: ("float32", "<f4"),
    2: ("float64", "<f8"),
    3: ("int32", "<i4"),
    4: ("uint8", "|u1"),
    5: ("int16", "<i2"),
    6: ("int8", "|i1"),
    7: ("string", None),
    8: ("complex64", "<c8"),
    9: ("int64", "<i8"),
    10: ("bool", "|b1"),
    14: ("bfloat16", "<u2"),
    17: ("uint16", "<u2"),
    18: ("complex128", "<c16"),
    19: ("float16", "<f2"),
    21: ("variant", None),
    22: ("uint32", "<u4"),
    23: ("uint64", "<u8"),
}


class _Unsupported(Exception):
    """A bundle is whole, but not one that we can read."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    dtype : DataType of TensorFlow. shape : of the whole tensor. crc32c : masked. slices : of a
    partitioned tensor, (start, length) for each axis, length None meaning the whole axis.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[tuple[tuple[int, int | None], ...], ...]

    @property
    def dtype_name(self) -> str:
        """The name of the dtype, or its number in TensorFlow."""
        return _DTYPES[self.dtype][0] if self.dtype in _DTYPES else f"number {self.dtype}"


class TensorBundle(Mapping[str, Entry]):
    """A checkpoint by its prefix: a mapping from tensor names to entries, and their arrays.

    prefix : path without ".index". Raises WeightsError where files are absent, damaged, cut off,
    big-endian, or of a newer format.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index = prefix.with_name(prefix.name + INDEX_SUFFIX)
        try:
            size = index.stat().st_size
            if size > _MAX_INDEX_BYTES:
                raise Malformed(f"it has {size} bytes, more than any index")
            table = read_table(memoryview(index.read_bytes()))
            self._n_shards = _check_header(table.pop(b"", None))
            self._entries = {key: _read_entry(memoryview(value)) for key, value in table.items()}
        except OSError as error:
            raise WeightsError(f"cannot read {index}: {error.strerror or error}") from None
        except _Unsupported as error:
            raise WeightsError(
                f"{index} {error}, which is not supported: restore it in TensorFlow on the machine "
                "that wrote it and save it again there"
            ) from None
        except Malformed as error:
            raise WeightsError(
                f"{index} is not a whole index of a TensorFlow checkpoint: {error}. Copy it again"
            ) from None
        # Slices lie under names of their own, which start with a zero byte.
        self._names = {
            key.decode("utf-8", errors="replace"): key
            for key in self._entries
            if not key.startswith(b"\0")
        }

    def __getitem__(self, name: str) -> Entry:
        return self._entries[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor of numbers; bfloat16 comes as float32.

        Raises WeightsError where its bytes are damaged or missing, or it holds no numbers; KeyError
        where there is no such tensor.
        """
        entry = self[name]
        try:
            if not entry.slices:
                return self._numbers(entry)
            return self._assemble(self._names[name], entry)
        except Malformed as error:
            raise self._damaged(name, error) from None

    def string(self, name: str) -> bytes:
        """Return a tensor of one string. Raises as `array` does."""
        entry = self[name]
        try:
            if entry.dtype != _STRING or entry.shape != () or entry.slices:
                raise Malformed(f"it is a {entry.dtype_name} of shape {entry.shape}, not a string")
            if entry.size > _MAX_STRING_BYTES:
                raise Malformed(f"it has {entry.size} bytes")
            return _one_string(self._bytes(entry, check=False), entry)
        except Malformed as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Malformed) -> WeightsError:
        return WeightsError(f"tensor {name!r} of the checkpoint {self.prefix}: {error}")

    def _numbers(self, entry: Entry) -> NDArray[Any]:
        _, code = _DTYPES.get(entry.dtype, ("", None))
        if code is None:
            raise Malformed(f"dtype {entry.dtype_name} is not supported, only plain numbers are")
        dtype = np.dtype(code)
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise Malformed(
                f"a {entry.dtype_name} of shape {entry.shape} does not have {entry.size} bytes"
            )
        if entry.size == 0 and max(entry.shape) > _MAX_INDEX_BYTES:
            raise Malformed(f"it is empty, of shape {entry.shape}")
        values = np.frombuffer(self._bytes(entry), dtype).reshape(entry.shape)
        if entry.dtype == _BFLOAT16:
            return (values.astype("<u4") << 16).view("<f4")
        if dtype.kind == "b" and values.size and values.view(np.uint8).max() > 1:
            raise Malformed("a truth value is neither 0 nor 1")
        return values.astype(dtype.newbyteorder("="), copy=False)

    def _bytes(self, entry: Entry, *, check: bool = True) -> bytes:
        if not 0 <= entry.shard < self._n_shards:
            raise Malformed(f"it lies in shard {entry.shard} of {self._n_shards}")
        if entry.size == 0:
            return b""
        path = self._shard_path(entry.shard)
        try:
            with open(path, "rb") as file:
                available = file.seek(0, 2)
                if entry.offset + entry.size > available:
                    raise Malformed(
                        f"it lies at bytes {entry.offset} to {entry.offset + entry.size} of "
                        f"{path.name}, which has {available}: it is cut off, copy it again"
                    )
                file.seek(entry.offset)
                content = file.read(entry.size)
        except OSError as error:
            raise Malformed(f"cannot read {path}: {error.strerror or error}") from None
        if check and crc32c(content) != unmask(entry.crc32c):
            raise Malformed(f"its bytes do not match their checksum: copy {path.name} again")
        return content

    def _assemble(self, key: bytes, entry: Entry) -> NDArray[Any]:
        """Put a partitioned tensor together from its slices, which must tile it."""
        parts = [self._slice(key, entry, extents) for extents in entry.slices]
        # All sizes first: nothing is allocated that the data files cannot fill.
        n_bytes = sum(part.size for part, _ in parts)
        if n_bytes > self._data_bytes():
            raise Malformed("its slices are larger than the data files")
        if sum(math.prod(part.shape) for part, _ in parts) != math.prod(entry.shape):
            raise Malformed(f"its slices do not tile the shape {entry.shape}")
        arrays = [self._numbers(part) for part, _ in parts]
        whole = np.zeros(entry.shape, arrays[0].dtype)
        filled = np.zeros(entry.shape, np.bool_)
        for values, (_, window) in zip(arrays, parts):
            if filled[window].any():
                raise Malformed("its slices overlap")
            whole[window], filled[window] = values, True
        return whole

    def _slice(
        self, key: bytes, entry: Entry, extents: tuple[tuple[int, int | None], ...]
    ) -> tuple[Entry, tuple[slice, ...]]:
        """Return a slice's own entry and its place in the tensor."""
        part = self._entries.get(slice_key(key, extents))
        if part is None or part.slices or part.dtype != entry.dtype:
            raise Malformed("the entry of one of its slices is missing")
        window = tuple(
            slice(start, n if length is None else start + length)
            for (start, length), n in zip(extents, entry.shape)
        )
        fits = all(0 <= w.start <= w.stop <= n for w, n in zip(window, entry.shape))
        if (
            len(extents) != len(entry.shape)
            or not fits
            or part.shape != tuple(w.stop - w.start for w in window)
        ):
            raise Malformed(f"a slice does not fit the shape {entry.shape}")
        return part, window

    def _shard_path(self, shard: int) -> Path:
        name = f"{self.prefix.name}.data-{shard:05d}-of-{self._n_shards:05d}"
        return self.prefix.with_name(name)

    def _data_bytes(self) -> int:
        return sum(
            path.stat().st_size
            for shard in {entry.shard for entry in self._entries.values()}
            if (path := self._shard_path(shard)).exists()
        )


def slice_key(name: bytes, extents: tuple[tuple[int, int | None], ...]) -> bytes:
    """Return the name under which a slice of a partitioned tensor is stored."""
    escapes = {0: b"\0\xff", 255: b"\xff\0"}
    escaped = b"".join(escapes.get(byte, bytes([byte])) for byte in name)
    result = _ordered(0) + escaped + b"\0\1" + _ordered(len(extents))
    for start, length in extents:
        result += _ordered_signed(start) + _ordered_signed(-1 if length is None else length)
    return result


def _ordered(value: int) -> bytes:
    """Return a number in the order-preserving code: its length in bytes, then big-endian."""
    content = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(content)]) + content


def _ordered_signed(value: int) -> bytes:
    """Return a signed number in the code whose leading equal bits count the bytes that follow."""
    n = (value if value >= 0 else ~value).bit_length() // 7 + 1
    header = (1 << 8 * n) - (1 << 7 * n)  # n ones, then zeros
    return ((value & (1 << 8 * n) - 1) ^ header).to_bytes(n, "big")


def _check_header(value: bytes | None) -> int:
    """Return the number of shards; refuse what we cannot read."""
    if value is None:
        raise Malformed("it has no header entry")
    n_shards, endianness, version = 0, 0, memoryview(b"")
    for key, part in fields(memoryview(value)):
        if key == 1:
            n_shards = number(part)
        elif key == 2:
            endianness = number(part)
        elif key == 3:
            version = submessage(part)
    if endianness != 0:
        raise _Unsupported("was written by a big-endian machine")
    for key, part in fields(version):  # producer, min_consumer, bad_consumers
        if (key == 2 and signed(number(part)) > _VERSION) or (
            key == 3 and _VERSION in packed_numbers(part)
        ):
            raise _Unsupported(f"is of a newer format than version {_VERSION}")
    if not 1 <= n_shards <= 99_999:
        raise Malformed(f"it names {n_shards} data files")
    return n_shards


def _read_entry(value: memoryview) -> Entry:
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    slices = []
    for key, part in fields(value):
        if key in numbers:
            numbers[key] = number(part)
        elif key == 2:
            shape = _read_shape(submessage(part))
        elif key == 7:
            slices.append(
                tuple(_read_extent(submessage(e)) for k, e in fields(submessage(part)) if k == 1)
            )
    if max(numbers.values()) >= 1 << 63:
        raise Malformed("an entry has a negative number")
    dtype, shard, offset, size, checksum = numbers.values()
    return Entry(dtype, shape, shard, offset, size, checksum, tuple(slices))


def _read_shape(message: memoryview) -> tuple[int, ...]:
    shape = []
    for key, dim in fields(message):
        if key == 3 and number(dim):
            raise Malformed("a tensor is of unknown rank")
        if key == 2:
            sizes = [signed(number(v)) for k, v in fields(submessage(dim)) if k == 1]
            shape.append(sizes[-1] if sizes else 0)
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0:
        raise Malformed(f"a tensor has the shape {tuple(shape)[:8]}")
    return tuple(shape)


def _read_extent(message: memoryview) -> tuple[int, int | None]:
    start, length = 0, -1
    for key, part in fields(message):
        if key == 1:
            start = signed(number(part))
        elif key == 2:
            length = signed(number(part))
    return start, None if length < 0 else length


def _one_string(content: bytes, entry: Entry) -> bytes:
    """Return the string of a scalar: its length, the length's checksum, its bytes.

    The checksums see the length as 32 bits (64 where it needs them).
    """
    view = memoryview(content)
    length, at = varint(view, 0)
    if len(content) - at - 4 != length:
        raise Malformed("its length is not that of its bytes")
    seen = length.to_bytes(4 if length < 1 << 32 else 8, "little")
    if crc32c(seen) != unmask(int.from_bytes(content[at : at + 4], "little")):
        raise Malformed("its length does not match its checksum")
    if crc32c(seen + content[at:]) != unmask(entry.crc32c):
        raise Malformed("its bytes do not match their checksum")
    return content[at + 4 :]

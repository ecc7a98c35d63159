"""TensorFlow's tensor bundles for tests: what the golden ones hold, and a writer for wrong ones.

The files in tests/data/tensor_bundles were written by TensorFlow (write.py there). The writer here
makes bundles that TensorFlow would never write, with valid checksums or without.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from delfsearch.extraction.weights_io.crc32c import crc32c, mask
from delfsearch.extraction.weights_io.sstable import MAGIC
from delfsearch.extraction.weights_io.tensor_bundle import slice_key

GOLDEN = Path(__file__).resolve().parent / "data/tensor_bundles"
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "string": 7, "int64": 9, "bool": 10}


def golden_tensors() -> dict[str, np.ndarray]:
    """Return what the golden checkpoints hold, apart from the partitioned ones."""
    counting = np.arange(24)
    wide = counting.reshape(2, 3, 4)
    result = {
        "scalar": np.float32(-1.5),
        "empty": np.zeros((0, 3), np.float32),
        "float32": (wide / 7).astype(np.float32),
        "float64": wide / 7,
        "float16": (counting / 8).astype(np.float16),
        "bfloat16": (counting / 4).astype(np.float32),  # all of them are bfloat16s
        "int8": (counting - 12).astype(np.int8),
        "uint8": (10 * counting).astype(np.uint8),
        "int16": (counting * 1000 - 12000).astype(np.int16),
        "uint16": (counting * 2000).astype(np.uint16),
        "int32": (counting * 80_000_000 - 2**30).astype(np.int32),
        "int64": counting.astype(np.int64) << 40,
        "bool": counting % 3 == 0,
        "complex64": (counting + 1j * counting[::-1]).astype(np.complex64),
        "special": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32),
    }
    # Names that share long beginnings, and one beginning that is a name itself.
    stem = "network/" + "/".join(f"a_long_scope_{i:03d}" for i in range(12))
    result |= {f"{stem}/weights_{i}": np.full((i,), i, np.float32) for i in range(1, 20)}
    result[stem] = np.arange(5, dtype=np.float32)
    return result


def partitioned() -> dict[str, np.ndarray]:
    """Return the partitioned tensors of the golden checkpoints."""
    return {
        "rows": np.arange(70, dtype=np.float32).reshape(10, 7),
        "columns": np.arange(70, dtype=np.float64).reshape(7, 10) / 3,
    }


# -- the writer ------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Encode (field number, number or bytes) pairs."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<I", value)


def shape_message(shape: Iterable[int]) -> bytes:
    return message(*((2, message((1, n))) for n in shape))


def header(n_shards: int = 1, endianness: int = 0, version: bytes | None = None) -> bytes:
    version = message((1, 1)) if version is None else version
    return message((1, n_shards), (2, endianness), (3, version))


def entry(
    dtype: int, shape: Iterable[int], offset: int, size: int, checksum: int, shard: int = 0
) -> bytes:
    return message(
        (1, dtype), (2, shape_message(shape)), (3, shard), (4, offset), (5, size)
    ) + fixed32(6, mask(checksum))


def block(pairs: Iterable[tuple[bytes, bytes]], *, restart_every: int = 16) -> bytes:
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def sealed(content: bytes, kind: int = 0) -> bytes:
    """Append a block's trailer."""
    content += bytes([kind])
    return content + struct.pack("<I", mask(crc32c(content)))


def snappy_literals(content: bytes) -> bytes:
    """Compress the way that compresses nothing: literals of at most 60 bytes."""
    out = varint(len(content))
    for start in range(0, len(content), 60):
        part = content[start : start + 60]
        out += bytes([len(part) - 1 << 2]) + part
    return out


def table(pairs: Mapping[bytes, bytes], *, per_block: int = 1000, snappy: bool = False) -> bytes:
    """Return a sorted string table."""
    items = sorted(pairs.items())
    out, handles = b"", []
    for start in range(0, len(items), per_block):
        part = items[start : start + per_block]
        content = block(part)
        stored = snappy_literals(content) if snappy else content
        handles.append((part[-1][0], varint(len(out)) + varint(len(stored))))
        out += sealed(stored, int(snappy))
    return finished(out, handles)


def finished(out: bytes, handles: list[tuple[bytes, bytes]]) -> bytes:
    """Append metaindex, index and footer to data blocks."""
    footer = b""
    for content in (block([]), block(handles, restart_every=1)):
        footer += varint(len(out)) + varint(len(content))
        out += sealed(content)
    return out + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def write_bundle(
    prefix: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    strings: Mapping[str, bytes] | None = None,
    slices: Mapping[str, list[tuple[tuple[int, int | None], ...]]] | None = None,
    extra: Mapping[bytes, bytes] | None = None,
    per_block: int = 1000,
    snappy: bool = False,
) -> Path:
    """Write a bundle of one shard; slices says which arrays are partitioned, and how."""
    pairs, data = {b"": header()}, bytearray()

    def add(key: bytes, dtype: int, shape: tuple[int, ...], content: bytes, checksum: int) -> None:
        pairs[key] = entry(dtype, shape, len(data), len(content), checksum)
        data.extend(content)

    for name, array in arrays.items():
        dtype, key = DTYPES[array.dtype.name], name.encode()
        if name not in (slices or {}):
            add(key, dtype, array.shape, array.tobytes(), crc32c(array.tobytes()))
            continue
        parts = []
        for extents in (slices or {})[name]:
            window = tuple(slice(s, None if n is None else s + n) for s, n in extents)
            part = array[window]
            content = part.tobytes()
            add(slice_key(key, extents), dtype, part.shape, content, crc32c(content))
            parts.append(
                message(
                    *((1, message((1, s), *([] if n is None else [(2, n)]))) for s, n in extents)
                )
            )
        pairs[key] = message(
            (1, dtype), (2, shape_message(array.shape)), *((7, part) for part in parts)
        )
    for name, text in (strings or {}).items():
        length = struct.pack("<I", len(text))
        checked = struct.pack("<I", mask(crc32c(length)))
        content = varint(len(text)) + checked + text
        add(name.encode(), DTYPES["string"], (), content, crc32c(length + checked + text))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    content = table({**pairs, **(extra or {})}, per_block=per_block, snappy=snappy)
    prefix.with_name(prefix.name + ".index").write_bytes(content)
    return prefix

"""CRC-32C (Castagnoli) of long buffers, with NumPy alone.

The buffer is cut into equally long lanes whose checksums advance together, two bytes a step, and
are then joined: appending n bytes to a message multiplies its checksum by x^(8 n) modulo the
polynomial. Bit-reflected throughout. Complexity: linear, about 3 ns a byte. Source: RFC 3720,
appendix B.4 (the checksum); the mask is leveldb's.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_MASK_DELTA = 0xA282EAD8
_SHORT = 64  # bytes that a plain loop deals with
_MAX_LANES, _MAX_LENGTH = 1 << 13, 1 << 11  # a round looks at 16 MiB, whatever the buffer


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the checksum of a buffer."""
    return _raw(np.frombuffer(data, np.uint8), _ONES) ^ _ONES


def unmask(stored: int) -> int:
    """Return the checksum that leveldb's and TensorFlow's files store masked."""
    rotated = (stored - _MASK_DELTA) & _ONES
    return ((rotated >> 17) | (rotated << 15)) & _ONES


def mask(checksum: int) -> int:
    """Return a checksum as leveldb's and TensorFlow's files store it."""
    return ((((checksum >> 15) | (checksum << 17)) & _ONES) + _MASK_DELTA) & _ONES


def _raw(data: NDArray[np.uint8], state: int) -> int:
    """Return the shift register after data, from a state, without the usual inversions."""
    table, single = _table(), _bytes_table()
    while len(data) > _SHORT:
        # Powers of two, four times as many lanes as bytes in a lane; the rest is left for later.
        bits = len(data).bit_length() - 1
        length = min(_MAX_LENGTH, 1 << (bits // 2 - 1))
        n_lanes = min(_MAX_LANES, 1 << bits >> length.bit_length() - 1)
        lanes = data[: n_lanes * length].reshape(n_lanes, length)
        words = np.ascontiguousarray(lanes.view("<u2").T)
        # The register is linear: the state enters the first lane, the others start from zero.
        registers = np.zeros(n_lanes, np.uint32)
        registers[0] = state
        for word in words:
            registers = table[(registers ^ word) & 0xFFFF] ^ (registers >> 16)
        level = length.bit_length() - 1
        while len(registers) > 1:
            registers = _appended(registers[::2], level) ^ registers[1::2]
            level += 1
        state = int(registers[0])
        data = data[n_lanes * length :]
    for byte in data.tolist():
        state = single[(state ^ byte) & 0xFF] ^ state >> 8
    return state


@functools.lru_cache(maxsize=1)
def _bytes_table() -> list[int]:
    """Return the register after one byte from zero, for each byte."""
    result = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        result.append(value)
    return result


@functools.lru_cache(maxsize=1)
def _table() -> NDArray[np.uint32]:
    """Return the register after two bytes from zero, for each pair (little-endian)."""
    single = np.array(_bytes_table(), np.uint32)
    pairs = np.arange(1 << 16, dtype=np.uint32)
    first = single[pairs & 0xFF] ^ pairs >> 8
    result: NDArray[np.uint32] = single[first & 0xFF] ^ first >> 8
    return result


def _appended(registers: NDArray[np.uint32], level: int) -> NDArray[np.uint32]:
    """Return the registers after 2^level bytes of zeros."""
    result = np.zeros_like(registers)
    for i, table in enumerate(_zeros_tables(level)):
        result ^= table[registers >> 8 * i & 0xFF]
    return result


@functools.lru_cache(maxsize=64)
def _zeros_tables(level: int) -> NDArray[np.uint32]:
    """Return (4, 256): what each byte of a register becomes by 2^level bytes of zeros."""
    values = np.arange(256, dtype=np.uint32)
    if level == 0:
        single = np.array(_bytes_table(), np.uint32)
        columns = [values << 8 * i for i in range(4)]
        return np.stack([single[column & 0xFF] ^ column >> 8 for column in columns])
    before = _zeros_tables(level - 1)
    return np.stack([_appended(table, level - 1) for table in before])

"""Plain .npy files: written once, made durable, checksummed, and read back by memory map."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import IndexFormatError

_BLOCK = 1 << 20


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self._file.write(data)
        return len(data)


def write_array(path: Path, array: NDArray[Any]) -> tuple[int, str]:
    """Write a C-ordered little-endian .npy file and fsync it; returns its size and BLAKE2b-256."""
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        raise TypeError(f"{path.name}: arrays of Python objects are never stored")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    with path.open("wb") as file:
        hashed = _Hashed(file)
        np.lib.format.write_array(hashed, array, version=(1, 0), allow_pickle=False)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), hashed.hash.hexdigest()


def hash_file(path: Path) -> str:
    """Return the BLAKE2b-256 of a file, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def map_array(path: Path, *, dtype: str, shape: Sequence[int], n_bytes: int) -> NDArray[Any]:
    """Memory-map a .npy file read-only; IndexFormatError unless size, dtype and shape are these."""
    try:
        size = path.stat().st_size
        if size != n_bytes:
            raise IndexFormatError(
                f"{path} is damaged: it has {size} bytes and should have {n_bytes}"
            )
        # An empty file cannot be mapped.
        mode: Any = None if 0 in shape else "r"
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError:
        raise IndexFormatError(f"{path} is missing: the index is damaged") from None
    except IndexFormatError:
        raise
    except (ArithmeticError, EOFError, SyntaxError, TokenError, TypeError, ValueError) as error:
        # NumPy parses the header as Python source; a damaged one fails in many ways.
        raise IndexFormatError(f"{path} is damaged: {error}") from error
    if array.dtype.str != dtype or array.shape != tuple(shape) or not array.flags.c_contiguous:
        raise IndexFormatError(
            f"{path} is damaged: it holds {array.dtype.str} {array.shape} and should hold "
            f"{dtype} {tuple(shape)}"
        )
    # A plain view: slicing np.memmap is slow, and the view keeps the map alive.
    view: NDArray[Any] = array.view(np.ndarray)
    return view


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map a .npy file read-only, whatever it holds; IndexFormatError where it is none."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            n_bytes = file.tell() + dtype.itemsize * math.prod(shape)
    except (
        ArithmeticError,
        EOFError,
        OSError,
        SyntaxError,
        TokenError,
        TypeError,
        ValueError,
    ) as e:
        raise IndexFormatError(f"{path} is damaged: {e}") from e
    return map_array(path, dtype=dtype.str, shape=shape, n_bytes=n_bytes)


def array_bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Return the bytes of a set of arrays."""
    return sum(array.nbytes for array in arrays.values())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (a folder cannot be synced on Windows: nothing to do)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

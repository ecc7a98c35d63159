"""Arrays that are written piece by piece, when they are too large to be held."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from delfsearch.storage.arrays import hash_file, sync_folder, write_array

Arrays = dict[str, NDArray[Any]]
# (name, dtype, shape, bytes of the file, its BLAKE2b-256)
Described = tuple[str, str, tuple[int, ...], int, str]

_HEADER_BYTES = 128


class ArrayWriter:
    """The arrays of one folder: `append` rows of one, or `write` it whole; then `finish`.

    folder : None keeps them in RAM. Nothing in the folder is an array before `finish`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._described: list[Described] = []
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._shapes: dict[str, tuple[np.dtype[Any], int, tuple[int, ...]]] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Put rows (n, ...) behind those that the array has."""
        rows = np.ascontiguousarray(rows)
        dtype, n, rest = self._shapes.setdefault(name, (rows.dtype, 0, rows.shape[1:]))
        assert rows.dtype == dtype and rows.shape[1:] == rest
        self._shapes[name] = (dtype, n + len(rows), rest)
        if self._folder is None:
            self._parts.setdefault(name, []).append(rows.copy())
            return
        if name not in self._files:
            self._folder.mkdir(exist_ok=True)
            self._files[name] = (self._folder / f"{name}.npy").open("wb")
            self._files[name].write(bytes(_HEADER_BYTES))
        if rows.size == 0:
            return
        little = rows.astype(dtype.newbyteorder("<"), copy=False)
        little.tofile(self._files[name])

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write an array whole."""
        array = np.ascontiguousarray(array)
        if self._folder is None:
            self._parts[name] = [array]
            return
        self._folder.mkdir(exist_ok=True)
        n_bytes, blake2b = write_array(self._folder / f"{name}.npy", array)
        dtype = array.dtype.newbyteorder("<").str
        self._described.append((name, dtype, array.shape, n_bytes, blake2b))

    def finish(self) -> tuple[Arrays, list[Described]]:
        """Make everything durable: the arrays in RAM, or what lies in the folder."""
        if self._folder is None:
            whole = {
                name: parts[0] if len(parts) == 1 else np.concatenate(parts)
                for name, parts in self._parts.items()
            }
            return whole, []
        for name, file in self._files.items():
            dtype, n, rest = self._shapes[name]
            file.seek(0)
            file.write(_header(dtype, (n, *rest)))
            file.flush()
            os.fsync(file.fileno())
            file.close()
            path = self._folder / f"{name}.npy"
            described = dtype.newbyteorder("<").str, (n, *rest), path.stat().st_size
            self._described.append((name, *described, hash_file(path)))
        self._files = {}
        sync_folder(self._folder)
        return {}, sorted(self._described)

    def close(self) -> None:
        """Let go of the files; what was not finished is no array."""
        for file in self._files.values():
            file.close()
        self._files = {}


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file, version 1.0, in a length that no number of rows changes."""
    text = (
        f"{{'descr': '{dtype.newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    )
    n = _HEADER_BYTES - 10
    assert len(text) < n
    return b"\x93NUMPY\x01\x00" + n.to_bytes(2, "little") + text.ljust(n - 1).encode() + b"\n"

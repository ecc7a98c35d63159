"""What the codes of an inverted file mean: cells, rotations and codebooks, learned once.

All segments of an index share one, so that they answer as one would; it lies beside them on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch import _core
from delfsearch.errors import IndexFormatError
from delfsearch.index.uniform_quantizer import MAX_MAGNITUDE, UniformQuantizer

Arrays = dict[str, NDArray[Any]]

_LOCAL = 2  # LopqOptions::Rotation
# Rotations and codebooks in float32 have no steps: those of indexes before there were 8 bits.
_DTYPES = {
    "split": (np.dtype("<i8"), 1),  # parts, bits
    "lower": (np.dtype("<f4"), 1),
    "step": (np.dtype("<f4"), 1),
    "coarse": (np.dtype("<f4"), 2),
    "rotations": (np.dtype("i1"), 3),
    "rotation_steps": (np.dtype("<f4"), 1),
    "rotation_of": (np.dtype("<i4"), 1),
    "codebooks": (np.dtype("i1"), 4),
    "codebook_steps": (np.dtype("<f4"), 1),
    "codebook_of": (np.dtype("<i4"), 1),
}
_LEARNED = tuple(_DTYPES)[4:]
# Rows of a cell, at least, that it learns from on average: fewer rows make fewer cells.
ROWS_PER_LIST = 32
# Of each cell, at most to twice as many, that cells themselves are learned from.
_COARSE_ROWS = 128
_COARSE_ITERATIONS, _CODE_ITERATIONS, _TOLERANCE = 10, 25, 1e-4


@dataclass(frozen=True, eq=False)
class CodeModel:
    """quantizer : of the exact descriptors, 8 bits a dimension, which codes are made from.

    coarse (n_lists, d) float32; learned : rotations, codebooks, both in 8 bits, with the steps of
    each, and the numbers of those that each cell has: see lopq.hpp.
    """

    quantizer: UniformQuantizer
    n_parts: int
    bits: int
    coarse: NDArray[np.float32]
    learned: Mapping[str, NDArray[Any]]
    view: _core.LopqView

    @staticmethod
    def of(
        quantizer: UniformQuantizer,
        n_parts: int,
        bits: int,
        coarse: NDArray[np.float32],
        learned: Mapping[str, NDArray[Any]],
    ) -> CodeModel:
        """Put a model together; raises ValueError where its arrays do not belong together."""
        view = _core.LopqView(n_parts, bits, coarse, **learned)
        return CodeModel(quantizer, n_parts, bits, coarse, learned, view)

    @staticmethod
    def learn(
        X: NDArray[np.float32],
        *,
        n_lists: int,
        n_parts: int,
        bits: int,
        min_rotation_rows: int,
        min_codebook_rows: int,
        clip_quantile: float,
        seed: int,
        n_threads: int,
    ) -> CodeModel:
        """Learn a model from rows (n, d). Fewer rows than 2^bits are repeated to make as many."""
        quantizer = UniformQuantizer.learn(X, clip_quantile=clip_quantile)
        rows = quantizer.decode(quantizer.quantize(X))
        if len(rows) < 2**bits:
            rows = np.resize(rows, (2**bits, rows.shape[1]))
        n_cells = max(1, min(n_lists, len(rows) // ROWS_PER_LIST))
        # Cells need fewer rows than what is learned within them.
        step = max(1, len(rows) // (_COARSE_ROWS * n_cells))
        some = np.ascontiguousarray(rows[::step])
        coarse, _, _ = _core.kmeans(
            some, n_cells, _COARSE_ITERATIONS, _TOLERANCE, 0, seed, n_threads
        )
        nearest = _core.CoarseSearch(coarse).nearest(rows, 1, n_threads)
        cells = np.ascontiguousarray(nearest[:, 0])
        families = _families(coarse, cells, min_codebook_rows, seed, n_threads)
        rows -= coarse[cells]
        n_families = int(families.max()) + 1
        learned, _ = _core.train_lopq(
            rows,
            families[cells],
            np.zeros((n_families, rows.shape[1]), np.float32),
            n_parts,
            bits,
            _LOCAL,
            min_rotation_rows,
            min_codebook_rows,
            _CODE_ITERATIONS,
            0,
            True,
            0,
            seed,
            n_threads,
        )
        for name in ("rotation_of", "codebook_of"):
            learned[name] = learned[name][families]
        return CodeModel.of(quantizer, n_parts, bits, coarse, learned)

    @property
    def dimension(self) -> int:
        """Columns of the descriptors."""
        return self.quantizer.dimension

    @property
    def n_lists(self) -> int:
        """Cells, each of which has a posting list."""
        return len(self.coarse)

    def quantize(self, X: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the exact codes (n, d) uint8 of rows (n, d)."""
        return self.quantizer.quantize(X)

    def encode(
        self, codes: NDArray[np.uint8], n_threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Return the cells (n,) and numbers (n, n_parts) of exact codes (n, d)."""
        rows = self.quantizer.decode(codes)
        cells = self.cells.nearest(rows, 1, n_threads)[:, 0]
        return cells, self.view.encode(rows, cells, n_threads)

    def choose_lists(
        self, queries: NDArray[np.float32], n_probe: int, n_threads: int
    ) -> NDArray[np.uint32]:
        """Return the n_probe nearest lists of each query (m, n_probe), best first."""
        return self.cells.nearest(queries, n_probe, n_threads)

    @cached_property
    def cells(self) -> _core.CoarseSearch:
        """What finds the nearest of coarse."""
        return _core.CoarseSearch(self.coarse)

    def digest(self) -> str:
        """Return a checksum of all of it."""
        hashed = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.arrays().items()):
            hashed.update(f"{name} {array.dtype.str} {array.shape}".encode())
            hashed.update(np.ascontiguousarray(array).data)
        return hashed.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(array.nbytes for array in self.arrays().values()) + self.cells.n_bytes

    def arrays(self) -> Arrays:
        """Return what goes on disk."""
        return {
            "split": np.array([self.n_parts, self.bits], np.int64),
            "lower": self.quantizer.lower,
            "step": self.quantizer.step,
            "coarse": self.coarse,
            **self.learned,
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]], folder: str) -> CodeModel:
        """Take a model back from disk; IndexFormatError where it is none."""
        in_floats = [
            name
            for name in ("rotation", "codebook")
            if getattr(arrays.get(f"{name}s"), "dtype", None) == np.dtype("<f4")
        ]
        taken: dict[str, NDArray[Any]] = {}
        for name, (dtype, n_axes) in _DTYPES.items():
            if name.removesuffix("_steps") in in_floats:
                continue
            dtype = np.dtype("<f4") if name.removesuffix("s") in in_floats else dtype
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.ndim != n_axes:
                raise IndexFormatError(
                    f"{folder} is damaged: {name} must be {n_axes}-D {dtype}, and it is "
                    + ("absent" if array is None else f"{array.dtype} {array.shape}")
                )
            if array.dtype.kind == "f" and not (np.abs(array) <= 2 * MAX_MAGNITUDE).all():
                raise IndexFormatError(f"{folder} is damaged: {name} holds no such numbers")
            taken[name] = array
        if len(arrays["split"]) != 2:
            raise IndexFormatError(f"{folder} is damaged: split must have two numbers")
        n_parts, bits = (int(value) for value in arrays["split"])
        try:
            quantizer = UniformQuantizer(arrays["lower"], arrays["step"])
            if quantizer.dimension != arrays["coarse"].shape[1]:
                raise ValueError("coarse has another dimension than lower")
            learned = {name: taken[name] for name in _LEARNED if name in taken}
            return CodeModel.of(quantizer, n_parts, bits, arrays["coarse"], learned)
        except (ValueError, TypeError) as error:
            raise IndexFormatError(f"{folder} is damaged: {error}") from error


def _families(
    coarse: NDArray[np.float32],
    cells: NDArray[np.uint32],
    min_rows: int,
    seed: int,
    n_threads: int,
) -> NDArray[np.uint32]:
    """Return a family (n_lists,) for each cell; families share a rotation and a codebook.

    A cell with min_rows rows or more is one by itself; the others are grouped by where they lie. A
    group that is still too small goes to the nearest family, so that all have as many rows.
    """
    counts = np.bincount(cells, minlength=len(coarse))
    few = np.flatnonzero(counts < min_rows)
    own = np.flatnonzero(counts >= min_rows)
    families = np.empty(len(coarse), np.uint32)
    families[own] = np.arange(len(own), dtype=np.uint32)
    centres = coarse[own]
    if len(few):
        n_groups = max(1, min(len(few), int(counts[few].sum() / min_rows)))
        points = np.ascontiguousarray(coarse[few])
        grouped, _, _ = _core.kmeans(
            points, n_groups, _CODE_ITERATIONS, _TOLERANCE, 0, seed, n_threads
        )
        group, _ = _core.assign_nearest(grouped, points, n_threads)
        families[few] = len(own) + group
        centres = np.concatenate([centres, grouped])
    sizes = np.bincount(families, weights=counts, minlength=len(centres))
    there = np.ones(len(centres), bool)
    into = np.arange(len(centres))
    for family in np.argsort(sizes, kind="stable"):
        if sizes[family] >= min_rows or there.sum() == 1:
            continue
        there[family] = False
        distances = ((centres - centres[family]) ** 2).sum(1)
        nearest = int(np.where(there, distances, np.inf).argmin())
        into[into == family] = nearest
        sizes[nearest] += sizes[family]
    _, numbers = np.unique(into[families], return_inverse=True)
    return numbers.astype(np.uint32)


def parse_code(code: Any) -> tuple[int, int]:
    """Return parts and bits of "10x5": 10 parts of 5 bits. Raises ValueError."""
    parts, x, bits = str(code).partition("x")
    if not (x and parts.isdecimal() and bits.isdecimal()):
        raise ValueError(
            f'code must be parts x bits, such as "10x5" for 10 parts of 5 bits; got {code!r}'
        )
    if not 4 <= int(bits) <= 8 or int(parts) < 1:
        raise ValueError(f"code must have at least 1 part, of 4 to 8 bits; got {code!r}")
    return int(parts), int(bits)


def check_split(code: Any, dimension: int) -> None:
    """Refuse a code whose parts do not divide the dimension."""
    n_parts, bits = parse_code(code)
    if dimension % n_parts:
        divisors = [n for n in range(1, dimension + 1) if dimension % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - n_parts))
        raise ValueError(
            f"code must have parts that divide the dimension, {dimension}; got {code!r}: take "
            f'"{nearest}x{bits}"'
        )

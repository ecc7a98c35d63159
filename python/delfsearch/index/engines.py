"""What finds neighbours within a segment: a KD-tree over 8-bit codes, or posting lists.

Both hold the descriptors of a segment's rows in 8 bits a dimension, from which segments are merged
and features given back, and answer the same questions. What their codes mean is learned once, from
the first rows of an index, and shared by its segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import IndexFormatError
from delfsearch.index.code_model import CodeModel
from delfsearch.index.inverted_file import InvertedFile
from delfsearch.index.quantized_kdtree import QuantizedKDTree
from delfsearch.index.uniform_quantizer import UniformQuantizer

Arrays = dict[str, NDArray[Any]]
METHODS = ("kdtree", "ivf")
# Descriptors from which method="auto" takes posting lists: a tree would take a gigabyte.
AUTO_LISTS_FROM = 20_000_000
# Bytes that no search reads, see Searcher.memory_usage.
EXACT = "exact"
# Where DelfIndex is told nothing.
MAX_LEAVES = {"kdtree": 128, "ivf": 10000}
LEAF_SIZE = {"kdtree": 64, "ivf": 2048}
# Rows that the 8 bits of a tree are learned from at least, where there are as many.
_TREE_ROWS = 2**18
# Of each cell, for cells and codebooks of posting lists; and at most.
_LIST_ROWS, _MOST_LIST_ROWS = 256, 2**22


class Prepared(Protocol):
    """Rows that one searcher may find, in its own form."""

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""


class Searcher(Protocol):
    """Rows of one segment, 0 ... n - 1, that can be searched; see QuantizedKDTree."""

    n_jobs: int | None
    n_features_in_: int

    @property
    def quantizer_(self) -> UniformQuantizer:
        """Range and step of the 8 bits of each dimension."""

    def query(
        self, X: Any, *, k: int, max_leaves: int | None = None, allowed: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k nearest rows of each of X: squared distances and rows (m, k)."""

    def prepare(self, mask: NDArray[np.bool_]) -> Prepared:
        """Return what query takes as allowed to find only some rows, mask (n,)."""

    def codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the 8-bit descriptors of rows start to stop."""

    def remove(self, rows: Any) -> None:
        """Keep rows from being returned."""

    def arrays(self) -> Arrays:
        """Return what goes on disk."""

    def memory_usage(self) -> dict[str, int]:
        """Return bytes by part, EXACT being what a search does not read."""


class Shared(Protocol):
    """What the codes of all segments of an index mean."""

    def quantize(self, X: Any) -> NDArray[np.uint8]:
        """Return 8-bit descriptors (n, d) of rows (n, d)."""


class Engine(Protocol):
    """How the searchers of an index are built. prefix : of their arrays on disk."""

    prefix: str

    @property
    def n_jobs(self) -> int | None:
        """Threads."""

    def n_learned_from(self, n_rows: int) -> int:
        """Return how many of n_rows `learn` wants."""

    def learn(self, X: NDArray[np.float32]) -> Shared:
        """Return what codes mean, from rows (n, d)."""

    def build(self, codes: NDArray[np.uint8], shared: Any) -> Searcher:
        """Return a searcher of rows (n, d) in 8 bits."""

    def open(self, arrays: Mapping[str, NDArray[Any]], shared: Any, folder: str) -> Searcher:
        """Return a searcher from its arrays; IndexFormatError where they are damaged."""

    def configure(self, searcher: Any) -> None:
        """Give a searcher what may change after it was built."""

    def shared_of(self, searcher: Any) -> Shared:
        """Return what a searcher's codes mean."""

    def shared_arrays(self, shared: Any) -> Arrays | None:
        """Return what has to be kept of it beside the segments."""

    def open_shared(self, arrays: Mapping[str, NDArray[Any]], folder: str) -> Shared:
        """Return it from these; IndexFormatError where they are damaged."""


@dataclass(frozen=True)
class TreeEngine:
    """Trees; parameters as QuantizedKDTree's."""

    leaf_size: int
    clip_quantile: float
    n_jobs: int | None
    prefix = "tree."

    def _params(self) -> dict[str, Any]:
        return {
            "leaf_size": self.leaf_size,
            "clip_quantile": self.clip_quantile,
            "n_jobs": self.n_jobs,
        }

    def n_learned_from(self, n_rows: int) -> int:
        """Return how many rows `learn` wants."""
        return _TREE_ROWS

    def learn(self, X: NDArray[np.float32]) -> UniformQuantizer:
        """Return what codes mean."""
        return UniformQuantizer.learn(X, clip_quantile=self.clip_quantile)

    def build(self, codes: NDArray[np.uint8], shared: UniformQuantizer) -> QuantizedKDTree:
        """Return a searcher of rows in 8 bits."""
        params = QuantizedKDTree(**self._params()).get_params()
        return QuantizedKDTree.from_codes(codes, shared, **params)

    def open(self, arrays: Mapping[str, NDArray[Any]], shared: Any, folder: str) -> QuantizedKDTree:
        """Return a searcher from its arrays."""
        return QuantizedKDTree.from_arrays(arrays, self._params())

    def configure(self, searcher: QuantizedKDTree) -> None:
        """Set its threads."""
        searcher.n_jobs = self.n_jobs

    def shared_of(self, searcher: QuantizedKDTree) -> UniformQuantizer:
        """Return what a searcher's codes mean."""
        return searcher.quantizer_

    def shared_arrays(self, shared: Any) -> None:
        """Nothing: every tree has its range and step."""

    def open_shared(self, arrays: Mapping[str, NDArray[Any]], folder: str) -> UniformQuantizer:
        """Return it from these."""
        raise IndexFormatError(f"{folder} is damaged: trees share nothing")


@dataclass(frozen=True)
class ListEngine:
    """Posting lists; parameters as InvertedFile's."""

    n_lists: int
    n_probe: int
    code: str
    leaf_size: int
    rerank: int
    clip_quantile: float
    random_state: Any
    n_jobs: int | None
    prefix = "lists."

    def _params(self) -> dict[str, Any]:
        names = ("n_lists", "n_probe", "code", "leaf_size", "rerank", "clip_quantile")
        named = {name: getattr(self, name) for name in (*names, "random_state", "n_jobs")}
        params: dict[str, Any] = InvertedFile(**named).get_params()
        return params

    def check(self) -> None:
        """Refuse parameters that make no sense."""
        InvertedFile(**self._params())._check_parameters()

    def n_learned_from(self, n_rows: int) -> int:
        """Return how many rows `learn` wants."""
        return min(_MOST_LIST_ROWS, max(_TREE_ROWS, _LIST_ROWS * self.n_lists))

    def learn(self, X: NDArray[np.float32]) -> CodeModel:
        """Return what codes mean."""
        return InvertedFile(**self._params()).learn(X)

    def build(self, codes: NDArray[np.uint8], shared: CodeModel) -> InvertedFile:
        """Return a searcher of rows in 8 bits."""
        return InvertedFile.from_codes(codes, shared, **self._params())

    def open(self, arrays: Mapping[str, NDArray[Any]], shared: Any, folder: str) -> InvertedFile:
        """Return a searcher from its arrays."""
        if not isinstance(shared, CodeModel):
            raise IndexFormatError(f"{folder} is damaged: the index lacks what its codes mean")
        return InvertedFile.from_arrays(arrays, shared, self._params())

    def configure(self, searcher: InvertedFile) -> None:
        """Set its threads and the effort of its searches."""
        searcher.n_jobs = self.n_jobs
        searcher.n_probe, searcher.rerank = self.n_probe, self.rerank

    def shared_of(self, searcher: InvertedFile) -> CodeModel:
        """Return what a searcher's codes mean."""
        return searcher.model_

    def shared_arrays(self, shared: CodeModel) -> Arrays:
        """Return what is kept beside the segments."""
        return shared.arrays()

    def open_shared(self, arrays: Mapping[str, NDArray[Any]], folder: str) -> CodeModel:
        """Return it from these."""
        return CodeModel.from_arrays(arrays, folder)

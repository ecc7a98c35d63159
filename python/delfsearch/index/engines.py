"""What finds neighbours within a segment: a KD-tree over 8-bit codes, or posting lists.

Both hold the descriptors of a segment's rows in 8 bits a dimension, from which segments are merged
and features given back, and answer the same questions. What their codes mean is learned once, from
the first rows of an index, and shared by its segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_n_jobs
from delfsearch.errors import IndexFormatError
from delfsearch.index.code_model import CodeModel
from delfsearch.index.inverted_file import InvertedFile
from delfsearch.index.list_merge import BLOCK, ListWriter, Part, Sink, merge_lists
from delfsearch.index.quantized_kdtree import QuantizedKDTree
from delfsearch.index.uniform_quantizer import UniformQuantizer

Arrays = dict[str, NDArray[Any]]
METHODS = ("kdtree", "ivf")
# What posting lists name.
POSTINGS = ("features", "photos")
# Descriptors from which method="auto" takes posting lists: a tree would take a gigabyte.
AUTO_LISTS_FROM = 20_000_000
# From which postings="auto" takes those of photos: the rest would come near to 9 bytes each.
AUTO_PHOTOS_FROM = 200_000_000
# Bytes that no search reads, see Searcher.memory_usage.
EXACT = "exact"
# Where DelfIndex is told nothing.
MAX_LEAVES = {"kdtree": 128, "ivf": 10000}
LEAF_SIZE = {"kdtree": 64, "features": 2048, "photos": 4096}
EPS = {"features": 0.0, "photos": 0.2}
# Rows that the 8 bits of a tree are learned from at least, where there are as many.
_TREE_ROWS = 2**18
# Of each cell, so that most have codebooks of their own; and at most.
_LIST_ROWS, _MOST_LIST_ROWS = 1280, 2**23


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
    def grouped(self) -> bool:
        """Whether the ids that it finds are those of photos, not of rows."""

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


@dataclass(frozen=True)
class Source:
    """A searcher that is merged. Its ids become numbers[id], -1 gone, or, None, id + first."""

    searcher: Any
    numbers: NDArray[np.int32] | None
    first: int


class Shared(Protocol):
    """What the codes of all segments of an index mean."""

    def quantize(self, X: Any) -> NDArray[np.uint8]:
        """Return 8-bit descriptors (n, d) of rows (n, d)."""


class Engine(Protocol):
    """How the searchers of an index are built.

    prefix : of their arrays on disk. part_rows : rows from which a large one is built in parts that
    are merged; None: at once.
    """

    prefix: str

    @property
    def part_rows(self) -> int | None:
        """Rows of a part."""

    @property
    def leaf_size(self) -> int:
        """Rows of a leaf."""

    @property
    def n_jobs(self) -> int | None:
        """Threads."""

    def n_learned_from(self, n_rows: int) -> int:
        """Return how many of n_rows `learn` wants."""

    def learn(self, X: NDArray[np.float32]) -> Shared:
        """Return what codes mean, from rows (n, d)."""

    def build(self, codes: NDArray[np.uint8], shared: Any, counts: NDArray[np.int64]) -> Searcher:
        """Return a searcher of rows (n, d) in 8 bits; counts : rows of each photo."""

    def merge(
        self,
        sources: Sequence[Source],
        codes: Callable[[], Iterator[NDArray[np.uint8]]],
        n_rows: int,
        n_photos: int,
        sink: Sink,
    ) -> None:
        """Write the arrays of one searcher of all rows that are left.

        codes : gives the 8 bits of these rows in their new order, some at a time.
        """

    def open(self, arrays: Mapping[str, NDArray[Any]], shared: Any, folder: str) -> Searcher:
        """Return a searcher from its arrays; IndexFormatError where they are damaged."""

    def configure(self, searcher: Any) -> None:
        """Give a searcher what may change after it was built."""

    def shared_of(self, searcher: Any) -> Shared:
        """Return what a searcher's codes mean."""

    def shared_arrays(self, shared: Any) -> Arrays | None:
        """Return what has to be kept of it beside the segments."""

    def shared_bytes(self, shared: Any) -> int:
        """Return the bytes that this takes in memory."""

    def open_shared(self, arrays: Mapping[str, NDArray[Any]], folder: str) -> Shared:
        """Return it from these; IndexFormatError where they are damaged."""


@dataclass(frozen=True)
class TreeEngine:
    """Trees; parameters as QuantizedKDTree's."""

    leaf_size: int
    clip_quantile: float
    n_jobs: int | None
    prefix = "tree."
    part_rows = None

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

    def build(
        self, codes: NDArray[np.uint8], shared: UniformQuantizer, counts: NDArray[np.int64]
    ) -> QuantizedKDTree:
        """Return a searcher of rows in 8 bits."""
        params = QuantizedKDTree(**self._params()).get_params()
        return QuantizedKDTree.from_codes(codes, shared, **params)

    def merge(
        self,
        sources: Sequence[Source],
        codes: Callable[[], Iterator[NDArray[np.uint8]]],
        n_rows: int,
        n_photos: int,
        sink: Sink,
    ) -> None:
        """Write a tree of all rows, built anew."""
        rows = np.concatenate(list(codes()))
        tree = self.build(rows, self.shared_of(sources[0].searcher), np.zeros(0, np.int64))
        for name, array in tree.arrays().items():
            sink.write(name, array)

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

    def shared_bytes(self, shared: Any) -> int:
        """Return 0."""
        return 0

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
    eps: float
    rerank: int
    clip_quantile: float
    random_state: Any
    n_jobs: int | None
    postings: str
    prefix = "lists."
    part_rows = 1 << 22

    def _params(self) -> dict[str, Any]:
        names = ("n_lists", "n_probe", "code", "leaf_size", "eps", "rerank", "clip_quantile")
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

    def build(
        self, codes: NDArray[np.uint8], shared: CodeModel, counts: NDArray[np.int64]
    ) -> InvertedFile:
        """Return a searcher of rows in 8 bits."""
        by = counts if self.postings == "photos" else None
        return InvertedFile.from_codes(codes, shared, by, **self._params())

    def merge(
        self,
        sources: Sequence[Source],
        codes: Callable[[], Iterator[NDArray[np.uint8]]],
        n_rows: int,
        n_photos: int,
        sink: Sink,
    ) -> None:
        """Write lists of the codes that there are, some lists at a time."""
        model = self.shared_of(sources[0].searcher)
        by_photo = self.postings == "photos"
        n_ids, leaf_blocks = n_photos if by_photo else n_rows, self.leaf_size // BLOCK
        parts = [Part(source.searcher, source.numbers, source.first) for source in sources]
        writer = ListWriter(model, n_ids, leaf_blocks, sink, check_n_jobs(self.n_jobs))
        merge_lists(parts, model, writer)
        for rows in codes():
            sink.append("exact", rows)
        sink.write("shape", np.array([n_rows, leaf_blocks, n_ids, by_photo], np.int64))

    def open(self, arrays: Mapping[str, NDArray[Any]], shared: Any, folder: str) -> InvertedFile:
        """Return a searcher from its arrays."""
        if not isinstance(shared, CodeModel):
            raise IndexFormatError(f"{folder} is damaged: the index lacks what its codes mean")
        return InvertedFile.from_arrays(arrays, shared, self._params())

    def configure(self, searcher: InvertedFile) -> None:
        """Set its threads and the effort of its searches."""
        searcher.n_jobs = self.n_jobs
        searcher.n_probe, searcher.eps, searcher.rerank = self.n_probe, self.eps, self.rerank

    def shared_of(self, searcher: InvertedFile) -> CodeModel:
        """Return what a searcher's codes mean."""
        return searcher.model_

    def shared_arrays(self, shared: CodeModel) -> Arrays:
        """Return what is kept beside the segments."""
        return shared.arrays()

    def shared_bytes(self, shared: CodeModel) -> int:
        """Return the bytes that this takes in memory."""
        return shared.nbytes

    def open_shared(self, arrays: Mapping[str, NDArray[Any]], folder: str) -> CodeModel:
        """Return it from these."""
        return CodeModel.from_arrays(arrays, folder)

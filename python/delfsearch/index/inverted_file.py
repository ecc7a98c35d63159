"""InvertedFile: nearest neighbours among product codes in posting lists (paper Sec. 5.4).

What is computed, bit for bit, is defined in inverted_file.hpp and lopq.hpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from delfsearch import _core
from delfsearch._validation import check_integer, check_n_jobs, check_real, check_seed
from delfsearch.errors import IndexFormatError
from delfsearch.index.code_model import CodeModel, check_split, parse_code
from delfsearch.index.list_merge import BLOCK, ListWriter, id_firsts
from delfsearch.index.uniform_quantizer import (
    UniformQuantizer,
    check_codes,
    check_descriptors,
    check_mask,
    check_row_range,
    check_rows,
)
from delfsearch.storage.array_writer import ArrayWriter

Arrays = dict[str, NDArray[Any]]

_DTYPES = {
    "shape": (np.dtype("<i8"), 1),  # rows, blocks of a leaf, ids, 1 where these are groups
    "first_block": (np.dtype("<u8"), 1),
    "sizes": (np.dtype("<u4"), 1),
    "blocks": (np.dtype("u1"), 1),
    "first_leaf": (np.dtype("<u8"), 1),
    "present": (np.dtype("<u4"), 1),
    "id_words": (np.dtype("<u8"), 1),
    "id_starts": (np.dtype("<u8"), 1),
    "exact": (np.dtype("u1"), 2),  # (rows, d), the 8-bit codes in the order of the rows
}
MAX_ROWS = 2**31 - 64
_ENCODED_AT_ONCE = 1 << 17
_NOTHING = np.zeros(0, np.uint64)


class InvertedFile(BaseEstimator):  # type: ignore[misc]
    """Product codes in posting lists, one list for each cell of a coarse quantizer.

    n_lists : cells; fewer where there are fewer than 32 rows for each. n_probe : lists searched for
        a query, the nearest. code : parts x bits of the codes; the parts divide the dimension.
    leaf_size : codes of a leaf of a list, a multiple of 64, or 0 for lists without leaves.
    max_leaves : leaves of a list that a query visits, best bin first.
    eps : >= 0, leaves are also left out where no code can be nearer than 1 / (1 + eps) of the
        distance (not squared) of the k-th in the query's lists before: the k-th code found (with
        rerank, the rerank-th) is at most 1 + eps times as far as that of all leaves. 0: none more.
    rerank : so many of the best codes are compared once more, by 8 bits a dimension; 0 none.
    min_rotation_rows, min_codebook_rows : rows that a rotation and a codebook are learned from at
        least; cells with fewer than the second share both with their neighbours.
    clip_quantile : of the 8 bits.
    random_state : seed of k-means. n_jobs : threads, None means 1, -1 all cores; they change no
        result.

    n_features_in_ : the dimension d. model_ : what the codes mean. n_lists_ : cells as built.
    Source: Sec. 5.4. Differs: a rotation and codebooks are those of a cell where it has enough
    rows, else of some neighbouring cells; the bound that orders leaves is the least distance that
    a code of the leaf could have.
    """

    model_: CodeModel
    n_features_in_: int
    n_lists_: int
    n_ids_: int

    def __init__(
        self,
        *,
        n_lists: int = 8000,
        n_probe: int = 5,
        code: str = "10x5",
        leaf_size: int = 2048,
        max_leaves: int = 10000,
        eps: float = 0.0,
        rerank: int = 0,
        min_rotation_rows: int = 128,
        min_codebook_rows: int = 288,
        clip_quantile: float = 0.9999,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_lists = n_lists
        self.n_probe = n_probe
        self.code = code
        self.leaf_size = leaf_size
        self.max_leaves = max_leaves
        self.eps = eps
        self.rerank = rerank
        self.min_rotation_rows = min_rotation_rows
        self.min_codebook_rows = min_codebook_rows
        self.clip_quantile = clip_quantile
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> InvertedFile:
        """Learn cells and codes from X (n, d) float32 and put its rows into lists. y : ignored.

        1 <= n < 2^31 - 64, values within +-1e16. Row numbers are the ids that `query` returns.
        Raises ValueError where X is empty, a value is not finite, or the code's parts do not divide
        d.
        """
        matrix = validate_data(self, X, dtype=np.float32, order="C")
        matrix = check_descriptors(matrix, "X", min_rows=1)
        model = self.learn(matrix)
        return self._fill(model.quantize(matrix), model)

    def learn(self, X: NDArray[np.float32]) -> CodeModel:
        """Return what codes of rows like X (n, d) mean."""
        n_parts, bits = self._check_parameters()
        check_split(self.code, X.shape[1])
        return CodeModel.learn(
            X,
            n_lists=self.n_lists,
            n_parts=n_parts,
            bits=bits,
            min_rotation_rows=self.min_rotation_rows,
            min_codebook_rows=self.min_codebook_rows,
            clip_quantile=self.clip_quantile,
            seed=check_seed(self.random_state),
            n_threads=check_n_jobs(self.n_jobs),
        )

    @classmethod
    def from_codes(
        cls,
        codes: Any,
        model: CodeModel,
        counts: Any = None,
        *,
        keep_exact: bool = True,
        **params: Any,
    ) -> InvertedFile:
        """Put rows that are quantized already into lists.

        codes : (n, d) uint8, n >= 1, made by model.quantize. counts : (g,) integers that sum to n:
            the ids that `query` returns are then those of groups (photos), the first of counts[0]
            rows, and so on: fewer, and so in fewer bits; None: row numbers. keep_exact : False
            keeps no 8-bit descriptors; `rerank`, `codes` and merging into trees are then not to be
            had. params : as the constructor takes them.
        """
        file = cls(**params)
        file._check_parameters()
        matrix = check_codes(codes, model.dimension)
        if len(matrix) == 0:
            raise ValueError("codes must have at least 1 row(s); got 0")
        return file._fill(matrix, model, counts, keep_exact)

    def _check_parameters(self) -> tuple[int, int]:
        for name in ("n_lists", "n_probe", "max_leaves", "min_rotation_rows", "min_codebook_rows"):
            check_integer(getattr(self, name), name, minimum=1, maximum=2**31 - 1)
        check_integer(self.rerank, "rerank", minimum=0, maximum=MAX_ROWS)
        check_real(self.eps, "eps", minimum=0)
        self.check_leaf_size(self.leaf_size)
        return parse_code(self.code)

    @staticmethod
    def check_leaf_size(leaf_size: Any) -> int:
        """Return a leaf size, or raise ValueError."""
        size = check_integer(leaf_size, "leaf_size", minimum=0, maximum=2**31)
        if size % BLOCK:
            raise ValueError(f"leaf_size must be a multiple of {BLOCK}, or 0; got {size}")
        return size

    def _fill(
        self,
        codes: NDArray[np.uint8],
        model: CodeModel,
        counts: Any = None,
        keep_exact: bool = True,
    ) -> InvertedFile:
        n, threads = len(codes), check_n_jobs(self.n_jobs)
        cells = np.empty(n, np.uint32)
        numbers = np.empty((n, model.n_parts), np.uint8)
        for start in range(0, n, _ENCODED_AT_ONCE):
            part = slice(start, start + _ENCODED_AT_ONCE)
            cells[part], numbers[part] = model.encode(codes[part], threads)
        leaf_blocks = self.leaf_size // BLOCK
        n_ids = n
        ids = np.arange(n, dtype=np.uint32)
        if counts is not None:
            per_group = np.asarray(counts, np.int64)
            if per_group.ndim != 1 or (per_group < 0).any() or per_group.sum() != n:
                raise ValueError(f"counts must be (g,) integers that sum to {n} rows")
            n_ids = len(per_group)
            ids = np.repeat(np.arange(n_ids, dtype=np.uint32), per_group)
        sink = ArrayWriter(None)
        writer = ListWriter(model, n_ids, leaf_blocks, sink, threads)
        writer.fill(0, model.n_lists, numbers, cells, ids)
        writer.finish()
        arrays, _ = sink.finish()
        arrays["exact"] = codes if keep_exact else codes[:0]
        shape = np.array([n, leaf_blocks, n_ids, counts is not None], np.int64)
        self._adopt(model, shape, arrays)
        return self

    def _adopt(
        self, model: CodeModel, shape: NDArray[np.int64], arrays: Arrays, *, check: bool = False
    ) -> None:
        n, leaf_blocks, n_ids, grouped = (int(value) for value in shape)
        if not grouped and n_ids != n:
            raise ValueError(f"there are {n} rows, but {n_ids} ids")
        if leaf_blocks == 0 and len(arrays["first_leaf"]):
            raise ValueError("lists without leaves have leaves")
        self._lists = _core.InvertedFileView(
            model.view,
            arrays["first_block"],
            arrays["sizes"],
            arrays["blocks"],
            leaf_blocks,
            arrays["first_leaf"],
            arrays["present"],
        )
        firsts = id_firsts(arrays["sizes"].astype(np.int64), leaf_blocks)
        if firsts[-1] != n:
            raise ValueError(f"lists hold {firsts[-1]} codes, but there are {n} rows")
        self._ids = _core.PackedIdsView(
            arrays["id_words"], arrays["id_starts"], firsts, max(1, n_ids), check
        )
        self.model_ = model
        self.n_features_in_ = model.dimension
        self.n_lists_ = model.n_lists
        self.n_ids_ = n_ids
        self._n_rows, self._leaf_blocks, self._firsts = n, leaf_blocks, firsts
        self._grouped = bool(grouped)
        self._arrays = arrays
        self._removed: NDArray[np.bool_] | None = None
        self._allowed: NDArray[np.uint64] | None = _NOTHING

    def query(
        self,
        X: Any,
        *,
        k: int = 64,
        max_leaves: int | None = None,
        n_probe: int | None = None,
        eps: float | None = None,
        rerank: int | None = None,
        allowed: NDArray[np.uint64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest codes of each query descriptor in the lists that it is nearest to.

        X : (m, d) float32 of the fitted dimension d, values within +-1e16.
        k : neighbours, 1 to 2^31 - 64. max_leaves : leaves visited of each list. n_probe : lists.
        eps : of leaves left out. rerank : codes, at least k if not 0, that are compared by 8 bits
            a dimension. None means the constructor's. allowed : what `prepare` returned: only its
            rows are found; None all.
        Returns squared_distances (m, k) float32, rising, +inf where missing: to what the codes
            stand for, or, with rerank, to the 8-bit descriptors; ids (m, k) int64, row numbers of
            fit (or of groups, see from_codes), -1 where missing. Equal distances go by id.
        Raises NotFittedError; ValueError where d differs from fit or a value is not finite.
        """
        if not self.__sklearn_is_fitted__():
            check_is_fitted(self)  # takes microseconds: a query alone may have 20
        queries = check_descriptors(X, "X", n_columns=self.n_features_in_)
        k = check_integer(k, "k", minimum=1, maximum=MAX_ROWS)
        leaves = self.max_leaves if max_leaves is None else max_leaves
        leaves = check_integer(leaves, "max_leaves", minimum=1)
        probes = self.n_probe if n_probe is None else n_probe
        probes = min(check_integer(probes, "n_probe", minimum=1), self.n_lists_)
        eps = check_real(self.eps if eps is None else eps, "eps", minimum=0)
        again = self.rerank if rerank is None else rerank
        again = check_integer(again, "rerank", minimum=0, maximum=MAX_ROWS)
        if again and (self._grouped or not self.has_exact):
            lack = "ids of groups" if self._grouped else "no 8-bit descriptors"
            raise ValueError(
                f"rerank must be 0, since this inverted file holds {lack}; got {again}"
            )
        if len(queries) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        threads = check_n_jobs(self.n_jobs)
        lists = self.model_.choose_lists(queries, probes, threads)
        wanted = min(max(k, again), self._n_rows)
        bits = self._all_allowed() if allowed is None else allowed
        squared, places = self._lists.search(queries, lists, wanted, leaves, eps, bits, threads)
        ids = _core.rows_of_places(
            self._lists,
            self._arrays["id_words"],
            self._arrays["id_starts"],
            self._firsts,
            max(1, self.n_ids_),
            lists,
            squared,
            places,
            threads,
        )
        if again:
            quantizer = self.model_.quantizer
            return _core.rerank(
                self._arrays["exact"], quantizer.lower, quantizer.step, queries, ids, k, threads
            )
        if wanted == k:
            return squared, ids
        found = np.full((len(queries), k), np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        found[:, :wanted] = squared
        rows[:, :wanted] = ids
        return found, rows

    def __len__(self) -> int:
        """Return the number of rows, removed ones included."""
        check_is_fitted(self)
        return self._n_rows

    @property
    def has_exact(self) -> bool:
        """Whether the 8-bit descriptors are kept."""
        return len(self._arrays["exact"]) == self._n_rows

    @property
    def grouped(self) -> bool:
        """Whether ids are those of groups of rows."""
        return self._grouped

    @property
    def list_sizes(self) -> NDArray[np.int64]:
        """Codes of each list (n_lists,), removed ones included."""
        return self._arrays["sizes"].astype(np.int64)

    def take(
        self, begin: int, end: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32]]:
        """Return numbers (n, n_parts), lists (n,) and ids (n,) of the codes of lists begin to end.

        Removed ones too.
        """
        threads = check_n_jobs(self.n_jobs)
        numbers, lists = self._lists.take(begin, end, threads)
        first = self._arrays["first_leaf"] if self._leaf_blocks else range(self.n_lists_ + 1)
        return numbers, lists, self._ids.get_range(int(first[begin]), int(first[end]), threads)

    @property
    def quantizer_(self) -> UniformQuantizer:
        """Range and step of each dimension of the 8-bit descriptors."""
        check_is_fitted(self)
        return self.model_.quantizer

    def codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the 8-bit codes (stop - start, d) of rows start to stop, removed ones too."""
        check_is_fitted(self)
        start, stop = check_row_range(start, stop, self._n_rows)
        if not self.has_exact:
            raise ValueError("this inverted file was built without its 8-bit descriptors")
        rows: NDArray[np.uint8] = self._arrays["exact"][start:stop]
        return rows

    def remove(self, rows: Any) -> None:
        """Keep ids from ever being returned again; those removed before are no error.

        rows : (r,) integers, row numbers (or those of groups). Not safe beside a query of the same
            object from another thread.
        """
        check_is_fitted(self)
        wanted = check_rows(rows, self.n_ids_)
        if len(wanted) == 0:
            return
        # A new array: a query that is about to make bits of the old one will not keep them.
        removed = np.zeros(self.n_ids_, bool) if self._removed is None else self._removed.copy()
        removed[wanted] = True
        self._removed = removed
        self._allowed = None  # made by the next query: it takes a pass over all ids

    def prepare(self, mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Return what `query` takes as allowed: a bit a code, made once for many queries.

        mask : (n_ids_,) bool, ids that may be found. Those removed before are not, those removed
            later are.
        """
        check_is_fitted(self)
        wanted = check_mask(mask, self.n_ids_)
        return self._bits_of(wanted if self._removed is None else wanted & ~self._removed)

    def _all_allowed(self) -> NDArray[np.uint64]:
        """Return a bit for each place that is not removed; nothing where none is."""
        allowed, removed = self._allowed, self._removed
        if allowed is None:
            assert removed is not None
            allowed = self._bits_of(~removed)
            if self._removed is removed:
                self._allowed = allowed
        return allowed

    def _bits_of(self, wanted: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Return a bit for each place, set where its id is wanted."""
        first_block = self._arrays["first_block"]
        places = first_block[:-1] * np.uint64(BLOCK)
        if self._leaf_blocks:
            size = self._leaf_blocks * BLOCK
            first_leaf = self._arrays["first_leaf"].astype(np.int64)
            n_leaves = -(-self._arrays["sizes"].astype(np.int64) // size)
            number = np.arange(first_leaf[-1]) - np.repeat(first_leaf[:-1], n_leaves)
            places = np.repeat(places, n_leaves) + (number * size).astype(np.uint64)
        # Of no ids the range is one.
        packed = np.packbits(wanted, bitorder="little")
        given = np.zeros((max(1, self.n_ids_) + 63) // 64, "<u8")
        given.view(np.uint8)[: len(packed)] = packed
        threads = check_n_jobs(self.n_jobs)
        return self._ids.select(given, places, int(first_block[-1]), threads)

    def arrays(self) -> Arrays:
        """Return all that `from_arrays` needs but the model: little-endian arrays, not copied."""
        check_is_fitted(self)
        return {"shape": self._shape(), **self._arrays}

    def _shape(self) -> NDArray[np.int64]:
        return np.array([self._n_rows, self._leaf_blocks, self.n_ids_, self._grouped], np.int64)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        model: CodeModel,
        params: Mapping[str, Any] | None = None,
        *,
        verify: bool = False,
    ) -> InvertedFile:
        """Take a file back from what `arrays` returned; memory maps are used in place.

        verify : also read through all packed ids. What is not verified is never read out of bounds,
        but damaged bytes give wrong answers.
        Raises IndexFormatError where an array is missing, of another type or size, or holds what no
        inverted file holds.
        """
        file = cls(**dict(params or {}))
        checked: Arrays = {}
        for name, (dtype, n_axes) in _DTYPES.items():
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.ndim != n_axes:
                arrived = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise IndexFormatError(f"array {name} must be {n_axes}-D {dtype}; got {arrived}")
            checked[name] = np.ascontiguousarray(array)
        shape = checked.pop("shape")
        exact = checked["exact"]
        if (
            len(shape) != 4
            or shape.min() < 0
            or exact.shape[1] != model.dimension
            or len(exact) not in (0, shape[0])
            or shape[0] > MAX_ROWS
            or shape[2] > MAX_ROWS
        ):
            raise IndexFormatError(f"array shape is damaged: {shape.tolist()[:3]}")
        try:
            file._adopt(model, shape, checked, check=verify)
        except ValueError as error:
            raise IndexFormatError(f"posting lists are damaged: {error}") from error
        return file

    def memory_usage(self) -> dict[str, int]:
        """Return bytes by part: codes, ids, leaves; exact, which is read for reranking alone.

        removed : which ids are not found, where some were removed.
        """
        check_is_fitted(self)
        parts = {
            "codes": ("blocks", "first_block", "sizes"),
            "ids": ("id_words", "id_starts"),
            "leaves": ("first_leaf", "present"),
            "exact": ("exact",),
        }
        usage = {
            part: sum(self._arrays[name].nbytes for name in names) for part, names in parts.items()
        }
        usage["ids"] += self._firsts.nbytes
        if self._removed is not None:
            # A bit a place comes with the first query.
            usage["removed"] = self._removed.nbytes + 8 * int(self._arrays["first_block"][-1])
        return usage

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_lists")

    def __getstate__(self) -> dict[str, Any]:
        # The views into the arrays cannot be pickled; they are made anew.
        state = dict(super().__getstate__())
        if state.pop("_lists", None) is not None:
            for name in ("_ids", "model_", "n_lists_", "_firsts", "_allowed"):
                del state[name]
            state["_model"] = self.model_.arrays()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        model = state.pop("_model", None)
        super().__setstate__(state)
        if model is not None:
            removed = self._removed
            self._adopt(CodeModel.from_arrays(model, "the model"), self._shape(), self._arrays)
            if removed is not None:
                self.remove(np.flatnonzero(removed))

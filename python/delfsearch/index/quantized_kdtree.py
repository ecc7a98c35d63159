"""QuantizedKDTree: nearest neighbours among 8-bit codes under a KD-tree (paper Sec. 5.2).

What is computed, bit for bit, is defined at the top of kdtree.hpp; docs/kdtree.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from delfsearch import _core
from delfsearch._validation import check_choice, check_integer, check_n_jobs
from delfsearch.errors import IndexFormatError
from delfsearch.index.uniform_quantizer import (
    UniformQuantizer,
    check_codes,
    check_descriptors,
    check_mask,
    check_row_range,
    check_rows,
)

Arrays = dict[str, NDArray[Any]]

_DTYPES = {
    "shape": np.dtype("<i8"),  # rows, dimension, leaf size
    "lower": np.dtype("<f4"),
    "step": np.dtype("<f4"),
    "codes": np.dtype("u1"),
    "norms": np.dtype("<f4"),
    "ids": np.dtype("u1"),
    "leaf_codes": np.dtype("u1"),
    "leaf_norms": np.dtype("<f4"),
}
# As in kdtree.hpp.
_MAX_ROWS = 2**31 - 64
_ROWS_AT_ONCE = 1 << 20
_TREE_ARRAYS = ("codes", "norms", "ids", "leaf_codes", "leaf_norms")


@dataclass(frozen=True)
class AllowedRows:
    """Rows that a search of one tree may find: a view of it with norms of their own."""

    view: _core.KdTreeView
    nbytes: int


class QuantizedKDTree(BaseEstimator):  # type: ignore[misc]
    """A KD-tree over descriptors of 8 bits per dimension, searched in batches, best bin first.

    leaf_size : descriptors per leaf (the last leaf may hold fewer), 1 or more; multiples of 16 are
        fastest. 64 takes 47.7 bytes a descriptor at 40 dimensions, everything included.
    max_leaves : leaves visited per query descriptor (T in the paper) where `query` says nothing.
    clip_quantile : share of each dimension's values that the 8-bit range covers, in (0, 1]; the
        rest is clipped.
    splits : "means" cuts a node across the line between the means of its two halves (balanced
        2-means), "axis" across the dimension of largest variance, as the textbook's KD-tree does.
        "means" reaches the same recall with about half the leaves.
    refine_steps : rounds of balanced k-means, 0 to 100, that the leaves go through after the cuts:
        rows move to the nearest leaf that has room. On clustered data 2 halve the leaves that a
        recall takes; 0 leaves the tree's own cells, as do fewer than 4 dimensions and leaves of
        fewer than 16 or more than 2^20 descriptors.
    n_jobs : threads for fit and query; None means 1, -1 all cores. Results do not depend on it.

    quantizer_ : UniformQuantizer, range and step of each dimension. n_leaves_, leaf_size_ : of the
    tree as built. n_features_in_ : the dimension d.

    Source: Sec. 5.2. Differs: a leaf holds leaf_size descriptors (the paper states none); cuts are
    oblique unless splits="axis", and leaves are refined unless refine_steps=0 (both together make
    the textbook's tree); the best bin is the one whose mean code is nearest to the query,
    not the one whose cell has the smallest lower bound: at equal recall that visits a quarter
    fewer. The query itself keeps 16 bits per dimension.
    """

    quantizer_: UniformQuantizer
    grouped = False  # ids are rows, see InvertedFile.grouped
    n_features_in_: int
    leaf_size_: int
    n_leaves_: int

    def __init__(
        self,
        *,
        leaf_size: int = 64,
        max_leaves: int = 128,
        clip_quantile: float = 0.9999,
        splits: str = "means",
        refine_steps: int = 3,
        n_jobs: int | None = None,
    ) -> None:
        self.leaf_size = leaf_size
        self.max_leaves = max_leaves
        self.clip_quantile = clip_quantile
        self.splits = splits
        self.refine_steps = refine_steps
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> QuantizedKDTree:
        """Quantize the database descriptors and build the tree over their codes.

        X : (n, d) float32, 1 <= n < 2^31, values within +-1e16. Row numbers are the ids that
            `query` returns. y : ignored.
        Raises ValueError where X is empty or a value is not finite.
        """
        matrix = validate_data(self, X, dtype=np.float32, order="C")
        matrix = check_descriptors(matrix, "X", min_rows=1)
        quantizer = UniformQuantizer.learn(matrix, clip_quantile=self.clip_quantile)
        return self._build(quantizer.quantize(matrix), quantizer)

    @classmethod
    def from_codes(cls, codes: Any, quantizer: UniformQuantizer, **params: Any) -> QuantizedKDTree:
        """Build a tree over codes that exist already.

        codes : (n, d) uint8, n >= 1, made by quantizer. params : as the constructor takes them.
        """
        tree = cls(**params)
        matrix = check_codes(codes, quantizer.dimension)
        if len(matrix) == 0:
            raise ValueError("codes must have at least 1 row(s); got 0")
        return tree._build(matrix, quantizer)

    def _build(self, codes: NDArray[np.uint8], quantizer: UniformQuantizer) -> QuantizedKDTree:
        leaf_size = min(check_integer(self.leaf_size, "leaf_size", minimum=1), len(codes))
        check_integer(self.max_leaves, "max_leaves", minimum=1)
        splits = check_choice(self.splits, "splits", ("means", "axis"))
        built = _core.build_kdtree(
            quantizer.lower,
            quantizer.step,
            codes,
            leaf_size,
            splits == "axis",
            check_integer(self.refine_steps, "refine_steps", minimum=0, maximum=100),
            check_n_jobs(self.n_jobs),
        )
        shape = np.array([len(codes), quantizer.dimension, leaf_size], np.int64)
        self._adopt(quantizer, shape, dict(zip(_TREE_ARRAYS, built)), check=False)
        return self

    def _adopt(
        self, quantizer: UniformQuantizer, shape: NDArray[np.int64], arrays: Arrays, *, check: bool
    ) -> None:
        n, dimension, leaf_size = (int(value) for value in shape)
        view = _view_of(quantizer, n, leaf_size, arrays, check=check)
        self.quantizer_ = quantizer
        self.n_features_in_ = dimension
        self.leaf_size_ = leaf_size
        self.n_leaves_ = -(-n // leaf_size)
        self._n_rows = n
        self._arrays = arrays
        self._view = view

    def query(
        self,
        X: Any,
        *,
        k: int = 64,
        max_leaves: int | None = None,
        allowed: AllowedRows | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest database descriptors of each query descriptor.

        X : (m, d) float32 of the fitted dimension d, values within +-1e16. Batches of hundreds,
            such as all descriptors of a photo, are several times faster per descriptor than one.
        k : neighbours per descriptor, 1 to 2^31 - 64.
        max_leaves : leaves visited per descriptor (T in the paper), best bin first; None means
            the constructor's. n_leaves_ or more visits all: brute force over the codes.
        allowed : what `prepare` returned: only its rows are found, and only leaves that hold one
            are visited and count; None means all.
        Returns squared_distances (m, k) float32, between X and the decoded codes, rising, +inf
            where missing; ids (m, k) int64, row numbers of fit, -1 where missing. Equal distances
            are ordered by id.
        Raises NotFittedError; ValueError where d differs from fit or a value is not finite.
        Source: Sec. 5.2. Differs: see the class.
        """
        check_is_fitted(self)
        queries = check_descriptors(X, "X", n_columns=self.n_features_in_)
        k = check_integer(k, "k", minimum=1, maximum=_MAX_ROWS)
        leaves = self.max_leaves if max_leaves is None else max_leaves
        leaves = min(check_integer(leaves, "max_leaves", minimum=1), self.n_leaves_)
        view = self._view if allowed is None else allowed.view
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = view.search(
            queries, k, leaves, check_n_jobs(self.n_jobs)
        )
        return found

    def __len__(self) -> int:
        """Return the number of rows, removed ones included."""
        check_is_fitted(self)
        return self._n_rows

    def codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the uint8 codes of rows start to stop of fit, in their order, removed ones too.

        start, stop : 0 <= start <= stop <= n; None means n. A few rows cost about 2 ms
            per million rows of the tree and read no codes but their own.
        Returns (stop - start, d). Raises ValueError where the range is not within the rows.
        """
        check_is_fitted(self)
        start, stop = check_row_range(start, stop, self._n_rows)
        return self._view.unpack_codes(start, stop)

    def remove(self, rows: Any) -> None:
        """Keep rows from ever being returned again.

        rows : (r,) integers, row numbers of fit; those removed before are no error.
        Not safe beside a query of the same object from another thread. Arrays that were mapped
        from a file are not written to: only the norms are copied.
        """
        check_is_fitted(self)
        wanted = check_rows(rows, self._n_rows)
        if len(wanted) == 0:
            return
        kept = np.ones(self._n_rows, bool)
        kept[wanted] = False
        norms = self._norms_of(kept)
        shape = np.array([self._n_rows, self.n_features_in_, self.leaf_size_], np.int64)
        self._adopt(self.quantizer_, shape, {**self._arrays, "norms": norms}, check=False)

    def prepare(self, mask: NDArray[np.bool_]) -> AllowedRows:
        """Return what `query` takes as allowed: 4 bytes a row, made once for many queries.

        mask : (n,) bool, rows that may be found. Rows removed are not, those removed later are.
        """
        check_is_fitted(self)
        norms = self._norms_of(check_mask(mask, self._n_rows))
        leaf_norms = np.array(self._arrays["leaf_norms"], np.float32)
        starts = np.arange(0, self._n_rows, self.leaf_size_)
        closed = np.minimum.reduceat(norms[: self._n_rows], starts) == np.inf
        leaf_norms[: self.n_leaves_][closed] = np.inf
        arrays = {**self._arrays, "norms": norms, "leaf_norms": leaf_norms}
        view = _view_of(self.quantizer_, self._n_rows, self.leaf_size_, arrays, check=False)
        return AllowedRows(view, norms.nbytes + leaf_norms.nbytes)

    def _norms_of(self, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the norms, infinite where a row is not kept."""
        norms = np.array(self._arrays["norms"], np.float32)
        packed = self._arrays["ids"].reshape(self._n_rows, -1)
        for start in range(0, self._n_rows, _ROWS_AT_ONCE):
            part = packed[start : start + _ROWS_AT_ONCE]
            ids = np.zeros((len(part), 4), np.uint8)
            ids[:, : part.shape[1]] = part
            norms[start : start + len(part)][~kept[ids.view("<u4")[:, 0]]] = np.inf
        return norms

    def arrays(self) -> Arrays:
        """Return all that `from_arrays` needs: flat little-endian arrays, without copies.

        Their sum is the tree's memory. Layout: docs/kdtree.md.
        """
        check_is_fitted(self)
        shape = np.array([self._n_rows, self.n_features_in_, self.leaf_size_], np.int64)
        return {
            "shape": shape,
            "lower": self.quantizer_.lower,
            "step": self.quantizer_.step,
            **self._arrays,
        }

    def memory_usage(self) -> dict[str, int]:
        """Return bytes by part: codes_and_tree, all of it."""
        return {"codes_and_tree": sum(array.nbytes for array in self.arrays().values())}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], params: Mapping[str, Any] | None = None
    ) -> QuantizedKDTree:
        """Take a tree back from what `arrays` returned; memory maps are used in place.

        params : as the constructor takes them; the layout itself comes from the arrays.
        Raises IndexFormatError where an array is missing, of another type or size, or holds what
        no tree holds. Reads norms and ids once; flipped bits within codes show in checksums only.
        """
        tree = cls(**dict(params or {}))
        checked: Arrays = {}
        for name, dtype in _DTYPES.items():
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.ndim != 1:
                arrived = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise IndexFormatError(f"tree array {name} must be 1-D {dtype}; got {arrived}")
            checked[name] = np.ascontiguousarray(array)
        shape = checked["shape"]
        if len(shape) != 3 or shape.min() < 1 or shape[1] != len(checked["lower"]):
            raise IndexFormatError(f"tree array shape is damaged: {shape.tolist()[:4]}")
        try:
            quantizer = UniformQuantizer(checked["lower"], checked["step"])
            tree._adopt(
                quantizer, shape, {name: checked[name] for name in _TREE_ARRAYS}, check=True
            )
        except ValueError as error:
            raise IndexFormatError(f"tree arrays are damaged: {error}") from error
        return tree

    def __getstate__(self) -> dict[str, Any]:
        # The view into the arrays cannot be pickled; it is made anew.
        state = dict(super().__getstate__())
        if state.pop("_view", None) is not None:
            for name in ("quantizer_", "n_features_in_", "leaf_size_", "n_leaves_", "_n_rows"):
                del state[name]
            state["_arrays"] = self.arrays()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        arrays = state.pop("_arrays", None)
        super().__setstate__(state)
        if arrays is not None:
            quantizer = UniformQuantizer(arrays["lower"], arrays["step"])
            tree_arrays = {name: arrays[name] for name in _TREE_ARRAYS}
            self._adopt(quantizer, arrays["shape"], tree_arrays, check=True)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_view")


def _view_of(
    quantizer: UniformQuantizer, n: int, leaf_size: int, arrays: Arrays, *, check: bool
) -> _core.KdTreeView:
    return _core.KdTreeView(
        n,
        leaf_size,
        quantizer.lower,
        quantizer.step,
        codes=arrays["codes"],
        norms=arrays["norms"],
        ids=arrays["ids"],
        leaf_codes=arrays["leaf_codes"],
        leaf_norms=arrays["leaf_norms"],
        check=check,
    )

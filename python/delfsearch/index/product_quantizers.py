"""Product quantizers: vectors as a few numbers of centroids (paper Sec. 5.4).

Plain (Jegou et al. 2011), with a rotation (Ge et al. 2013), and with a rotation and codebooks for
each cell of a coarse quantizer (Kalantidis and Avrithis 2014). What is computed, bit for bit, is
defined in lopq.hpp and product_code.hpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from delfsearch import _core
from delfsearch._validation import check_integer, check_n_jobs, check_seed, check_vector
from delfsearch.index.uniform_quantizer import check_descriptors

_NONE, _SHARED, _LOCAL = 0, 1, 2  # LopqOptions::Rotation


class ProductQuantizer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Cut a vector into equal parts and replace each by the number of its nearest centroid.

    n_subquantizers : parts, a divisor of the dimension. bits : of a part's number, 4 to 8; 10 parts
        of 5 bits make 50 bits.
    max_iter : of k-means. random_state : seed. n_jobs : threads; they change no result.

    codebooks_ : (n_subquantizers, d / n_subquantizers, 2^bits) float32, centroids of the parts.
    n_features_in_ : d.
    Source: Sec. 5.4; Jegou et al. 2011.
    """

    codebooks_: NDArray[np.float32]
    n_features_in_: int

    def __init__(
        self,
        *,
        n_subquantizers: int = 10,
        bits: int = 5,
        max_iter: int = 25,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_subquantizers = n_subquantizers
        self.bits = bits
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> ProductQuantizer:
        """Learn the codebooks.

        X : (n, d) float32, n of at least 2^bits. y : ignored.
        Raises ValueError where n_subquantizers does not divide d or rows are too few.
        """
        matrix = self._rows_to_learn(X)
        d = matrix.shape[1]
        self._learn(matrix, np.zeros(len(matrix), np.uint32), np.zeros((1, d), np.float32), _NONE)
        return self

    def transform(self, X: Any) -> NDArray[np.uint8]:
        """Return the numbers of X (n, d): (n, n_subquantizers) uint8."""
        matrix = self._rows(X)
        return self._view.encode(matrix, self._cells(matrix), check_n_jobs(self.n_jobs))

    def inverse_transform(self, codes: Any) -> NDArray[np.float32]:
        """Return the (n, d) vectors that codes (n, n_subquantizers) stand for."""
        numbers = self._check_codes(codes)
        return self._view.decode(numbers, np.zeros(len(numbers), np.uint32))

    def _rows_to_learn(self, X: Any) -> NDArray[np.float32]:
        matrix = validate_data(self, X, dtype=np.float32, order="C")
        matrix = check_descriptors(matrix, "X")
        n, d = matrix.shape
        parts = check_integer(self.n_subquantizers, "n_subquantizers", minimum=1)
        bits = check_integer(self.bits, "bits", minimum=4, maximum=8)
        check_integer(self.max_iter, "max_iter", minimum=1)
        if d % parts:
            raise ValueError(
                f"n_subquantizers must divide the dimension, {d}; got {parts}. Choose another "
                "split, or add or drop columns"
            )
        if n < 2**bits:
            raise ValueError(
                f"X must have at least 2^bits = {2**bits} rows to learn from; got n_samples = {n}"
            )
        return matrix

    def _rows(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        matrix = validate_data(self, X, dtype=np.float32, order="C", reset=False)
        return check_descriptors(matrix, "X")

    def _check_codes(self, codes: Any) -> NDArray[np.uint8]:
        check_is_fitted(self)
        parts, k = self.n_subquantizers, 2**self.bits
        array = np.asarray(codes)
        if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != parts:
            raise ValueError(
                f"codes must be a (n, {parts}) uint8 array, as transform returns; got "
                f"{array.dtype} {array.shape}"
            )
        if array.size and array.max() >= k:
            raise ValueError(f"codes must be below 2^bits = {k}; got {array.max()}")
        return np.ascontiguousarray(array)

    def _cells(self, matrix: NDArray[np.float32]) -> NDArray[np.uint32]:
        return np.zeros(len(matrix), np.uint32)

    def _learn(
        self,
        matrix: NDArray[np.float32],
        cells: NDArray[np.uint32],
        coarse: NDArray[np.float32],
        rotation: int,
        *,
        min_rotation_rows: int = 0,
        min_codebook_rows: int = 0,
        rounds: int = 0,
    ) -> None:
        rotations, rotation_of, codebooks, codebook_of = _core.train_lopq(
            matrix,
            cells,
            coarse,
            self.n_subquantizers,
            self.bits,
            rotation,
            min_rotation_rows,
            min_codebook_rows,
            self.max_iter,
            rounds,
            check_seed(self.random_state),
            check_n_jobs(self.n_jobs),
        )
        self._arrays = {
            "coarse": coarse,
            "rotations": rotations,
            "rotation_of": rotation_of,
            "codebooks": codebooks,
            "codebook_of": codebook_of,
        }
        self.codebooks_ = codebooks[0]
        self._view = _core.LopqView(self.n_subquantizers, self.bits, **self._arrays)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {key: value for key, value in state.items() if key != "_view"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_arrays"):
            self._view = _core.LopqView(self.n_subquantizers, self.bits, **self._arrays)


class OptimizedPQ(ProductQuantizer):
    """A product quantizer behind a rotation that spreads the variance evenly over the parts.

    n_rounds : of alternating between codebooks and rotation after the start at the principal axes
        (eigenvalue allocation); 0 stays there.
    rotation_ : (d, d) float32; row o gives output o.
    Other parameters and attributes: see ProductQuantizer. Source: Ge et al. 2013.
    """

    rotation_: NDArray[np.float32]

    def __init__(
        self,
        *,
        n_subquantizers: int = 10,
        bits: int = 5,
        n_rounds: int = 8,
        max_iter: int = 25,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            n_subquantizers=n_subquantizers,
            bits=bits,
            max_iter=max_iter,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.n_rounds = n_rounds

    def fit(self, X: Any, y: Any = None) -> OptimizedPQ:
        """Learn rotation and codebooks. X : as for ProductQuantizer.fit."""
        matrix = self._rows_to_learn(X)
        d = matrix.shape[1]
        self._learn(
            matrix,
            np.zeros(len(matrix), np.uint32),
            np.zeros((1, d), np.float32),
            _SHARED,
            rounds=check_integer(self.n_rounds, "n_rounds", minimum=0, maximum=1000),
        )
        self.rotation_ = np.ascontiguousarray(self._arrays["rotations"][0, :, :d].T)
        return self


class LocallyOptimizedPQ(ProductQuantizer):
    """A product quantizer of residuals, with rotation and codebooks for each cell that has enough.

    n_lists : cells of the coarse quantizer; fewer where there are fewer rows.
    min_rotation_rows, min_codebook_rows : rows of a cell, at least, for a rotation and for codebooks
        of its own; others share one of all cells. A rotation takes 4 d^2 bytes and codebooks
        4 d 2^bits: with few rows a cell that is more than the codes.
    cluster_centers_ : (n_lists, d) float32.
    Other parameters and attributes: see ProductQuantizer; codebooks_ are the shared ones.
    Source: Sec. 5.4; Kalantidis and Avrithis 2014. Differs: cells with little data share.
    """

    cluster_centers_: NDArray[np.float32]

    def __init__(
        self,
        *,
        n_lists: int = 64,
        n_subquantizers: int = 10,
        bits: int = 5,
        min_rotation_rows: int = 400,
        min_codebook_rows: int = 1024,
        max_iter: int = 25,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            n_subquantizers=n_subquantizers,
            bits=bits,
            max_iter=max_iter,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.n_lists = n_lists
        self.min_rotation_rows = min_rotation_rows
        self.min_codebook_rows = min_codebook_rows

    def fit(self, X: Any, y: Any = None) -> LocallyOptimizedPQ:
        """Learn cells, rotations and codebooks. X : as for ProductQuantizer.fit."""
        matrix = self._rows_to_learn(X)
        n_lists = min(check_integer(self.n_lists, "n_lists", minimum=1), len(matrix))
        rotation_rows = check_integer(self.min_rotation_rows, "min_rotation_rows", minimum=1)
        codebook_rows = check_integer(self.min_codebook_rows, "min_codebook_rows", minimum=1)
        threads = check_n_jobs(self.n_jobs)
        self.cluster_centers_, _, _ = _core.kmeans(
            matrix, n_lists, self.max_iter, 1e-4, 0, check_seed(self.random_state), threads
        )
        cells, _ = _core.assign_nearest(self.cluster_centers_, matrix, threads)
        self._learn(
            matrix,
            cells,
            self.cluster_centers_,
            _LOCAL,
            min_rotation_rows=rotation_rows,
            min_codebook_rows=codebook_rows,
        )
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the cell of each row of X (n, d): (n,) int64."""
        return self._cells(self._rows(X)).astype(np.int64)

    def inverse_transform(self, codes: Any, cells: Any = None) -> NDArray[np.float32]:
        """Return the (n, d) vectors that codes stand for in their cells, which predict returns."""
        numbers = self._check_codes(codes)
        if cells is None:
            raise ValueError("cells must be given: what a code stands for depends on its cell")
        where = check_vector(cells, "cells", np.int64, n=len(numbers))
        if len(where) and not 0 <= where.min() <= where.max() < len(self.cluster_centers_):
            raise ValueError(f"cells must be 0 ... {len(self.cluster_centers_) - 1}")
        return self._view.decode(numbers, where.astype(np.uint32))

    def _cells(self, matrix: NDArray[np.float32]) -> NDArray[np.uint32]:
        cells, _ = _core.assign_nearest(self.cluster_centers_, matrix, check_n_jobs(self.n_jobs))
        return cells

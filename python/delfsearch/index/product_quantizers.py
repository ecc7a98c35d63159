"""Product quantizers: vectors as a few numbers of centroids (paper Sec. 5.4).

Plain (Jegou et al. 2011), with a rotation (Ge et al. 2013), and with a rotation and codebooks for
each cell of a coarse quantizer (Kalantidis and Avrithis 2014). To the core all three are one thing:
a vector less its cell's centre, turned by the cell's rotation, cut into parts, each part replaced
by the number of its nearest centroid. The first two have a single cell. What is computed, bit for
bit, is defined in lopq.hpp and product_code.hpp; docs/product_quantizers.md has use and figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from delfsearch import _core
from delfsearch._validation import check_integer, check_n_jobs, check_seed, check_vector
from delfsearch.index.uniform_quantizer import check_codes, check_descriptors

_NONE, _SHARED, _LOCAL = 0, 1, 2  # LopqOptions::Rotation
_BLOCK = 64  # codes packed together, as in product_code.hpp
_MOST = 2**31 - 1


class ProductQuantizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Cut a vector into equal parts and replace each by the number of its nearest centroid.

    n_subquantizers : number of parts, a divisor of the dimension.
    bits : of a part's number, 4 to 8: 2^bits centroids. 10 parts of 5 bits make 6.25 bytes.
    max_iter : iterations of k-means, 1 or more; it ends before where the loss falls by less than
        1/10,000.
    batch_size : rows of a mini-batch of k-means (Sculley 2010), faster where rows are many and a
        little worse; 0 takes all rows in each iteration.
    random_state : seed, RandomState, Generator or None (another result each time).
    n_jobs : threads; None means 1, -1 all cores. They change no result.

    codebooks_ : (n_subquantizers, d / n_subquantizers, 2^bits) float32, centroids of the parts.
        Where a part has fewer distinct values than centroids, some centroids are equal.
    n_iter_ : iterations that k-means took, the most of all parts. n_features_in_ : the dimension d.
    Source: Sec. 5.4; Jegou et al. 2011. Differs: codes are the same whatever the instruction set
    and the number of threads; centroids start by k-means++, and an empty one takes the row farthest
    from its own.
    """

    codebooks_: NDArray[np.float32]
    n_iter_: int
    n_features_in_: int

    def __init__(
        self,
        *,
        n_subquantizers: int = 10,
        bits: int = 5,
        max_iter: int = 25,
        batch_size: int = 0,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_subquantizers = n_subquantizers
        self.bits = bits
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> ProductQuantizer:
        """Learn the codebooks.

        X : (n, d) float32, n of at least 2^bits, values within +-1e16. Of more than 262,144 rows
            that many, at equal spacing, are learned from. y : ignored.
        Returns self. Raises ValueError where n_subquantizers does not divide d, rows are too few,
            or a value is not finite.
        """
        matrix = self._rows_to_learn(X)
        self._learn(matrix, np.zeros((1, matrix.shape[1]), np.float32), _NONE)
        return self

    def transform(self, X: Any) -> NDArray[np.uint8]:
        """Return the codes of X, a number below 2^bits for each part.

        X : (n, d) float32 of the fitted dimension d, values within +-1e16.
        Returns (n, n_subquantizers) uint8. Ties go to the lower number.
        Raises NotFittedError; ValueError where d differs from fit or a value is not finite.
        """
        matrix = self._rows(X)
        return self._view.encode(matrix, self._assign(matrix), check_n_jobs(self.n_jobs))

    def inverse_transform(self, codes: Any) -> NDArray[np.float32]:
        """Return the vectors that codes stand for.

        codes : (n, n_subquantizers) uint8, as `transform` returns. Returns (n, d) float32.
        Raises NotFittedError; ValueError where codes have another shape or type, or a number is
            2^bits or more.
        """
        numbers = self._check_codes(codes)
        return self._view.decode(numbers, np.zeros(len(numbers), np.uint32))

    def squared_distances(self, X: Any, codes: Any) -> NDArray[np.float32]:
        """Return the squared distances of vectors to what codes stand for, X not being encoded.

        X : (m, d) float32 of the fitted dimension d, values within +-1e16.
        codes : (n, n_subquantizers) uint8, as `transform` returns.
        Returns (m, n) float32: a sum of n_subquantizers table entries each.
        Raises NotFittedError; ValueError as `transform` and `inverse_transform` do.
        Source: Jegou et al. 2011, asymmetric distances.
        """
        numbers = self._check_codes(codes)
        return self._distances(X, numbers, np.zeros(len(numbers), np.uint32))

    def pack(self, codes: Any) -> NDArray[np.uint8]:
        """Pack codes to the bit, in blocks of 64, the last one filled up with zeros.

        codes : (n, n_subquantizers) uint8, as `transform` returns.
        Returns (ceil(n / 64), 8 * n_subquantizers * bits) uint8. Layout: product_code.hpp.
        """
        numbers = self._check_codes(codes)
        return _core.pack_numbers(*self._shape, numbers)

    def unpack(self, blocks: Any, n: int) -> NDArray[np.uint8]:
        """Return the first n codes of what `pack` returned.

        blocks : (b, 8 * n_subquantizers * bits) uint8. n : 0 to 64 b.
        Returns (n, n_subquantizers) uint8. Raises ValueError where blocks have another shape.
        """
        check_is_fitted(self)
        parts, bits = self._shape
        array = check_codes(blocks, 8 * parts * bits, name="blocks")
        n = check_integer(n, "n", minimum=0, maximum=_BLOCK * len(array))
        return _core.unpack_numbers(parts, bits, array, n)

    @property
    def _shape(self) -> tuple[int, int]:
        """Parts and bits as fitted, whatever set_params did since."""
        parts, _, n_centroids = self.codebooks_.shape
        return parts, int(n_centroids).bit_length() - 1

    @property
    def _n_features_out(self) -> int:
        return self._shape[0]

    def _rows_to_learn(self, X: Any) -> NDArray[np.float32]:
        matrix = validate_data(self, X, dtype=np.float32, order="C")
        matrix = check_descriptors(matrix, "X")
        n, d = matrix.shape
        parts = check_integer(self.n_subquantizers, "n_subquantizers", minimum=1)
        bits = check_integer(self.bits, "bits", minimum=4, maximum=8)
        check_integer(self.max_iter, "max_iter", minimum=1, maximum=_MOST)
        check_integer(self.batch_size, "batch_size", minimum=0, maximum=_MOST)
        if d % parts:
            raise ValueError(
                f"n_subquantizers must divide the dimension, {d}; got {parts}. Choose another "
                "split, or add or drop columns"
            )
        if n < 2**bits:
            raise ValueError(
                f"X must have at least 2^bits = {2**bits} rows to learn from; got n_samples = {n}. "
                "Give more rows" + (" or fewer bits" if bits > 4 else "")
            )
        return matrix

    def _rows(self, X: Any) -> NDArray[np.float32]:
        check_is_fitted(self)
        matrix = validate_data(self, X, dtype=np.float32, order="C", reset=False)
        return check_descriptors(matrix, "X")

    def _check_codes(self, codes: Any) -> NDArray[np.uint8]:
        check_is_fitted(self)
        parts, bits = self._shape
        array = check_codes(codes, parts)
        if array.size and array.max() >= 2**bits:
            raise ValueError(
                f"codes must be below 2^bits = {2**bits}; got {array.max()}. Were they made by "
                "another quantizer?"
            )
        return array

    def _assign(self, matrix: NDArray[np.float32]) -> NDArray[np.uint32]:
        """Return the cell of each row."""
        return np.zeros(len(matrix), np.uint32)

    def _distances(
        self, X: Any, numbers: NDArray[np.uint8], cells: NDArray[np.uint32]
    ) -> NDArray[np.float32]:
        queries = check_descriptors(X, "X", n_columns=self.n_features_in_)
        return self._view.distances(queries, numbers, cells, check_n_jobs(self.n_jobs))

    def _learn(
        self,
        matrix: NDArray[np.float32],
        coarse: NDArray[np.float32],
        rotation: int,
        *,
        cells: NDArray[np.uint32] | None = None,
        min_rotation_rows: int = 0,
        min_codebook_rows: int = 0,
        rounds: int = 0,
        seed: int | None = None,
    ) -> None:
        learned, self.n_iter_ = _core.train_lopq(
            matrix,
            np.zeros(len(matrix), np.uint32) if cells is None else cells,
            coarse,
            self.n_subquantizers,
            self.bits,
            rotation,
            min_rotation_rows,
            min_codebook_rows,
            self.max_iter,
            self.batch_size,
            False,
            rounds,
            check_seed(self.random_state) if seed is None else seed,
            check_n_jobs(self.n_jobs),
        )
        self._arrays: dict[str, NDArray[Any]] = {"coarse": coarse, **learned}
        self.codebooks_ = learned["codebooks"][0]
        self._view = self._make_view()

    def _make_view(self) -> _core.LopqView:
        parts, bits = self._shape
        return _core.LopqView(parts, bits, **self._arrays)

    def __getstate__(self) -> dict[str, Any]:
        # The view into the arrays cannot be pickled; it is made anew.
        state: dict[str, Any] = super().__getstate__()
        return {key: value for key, value in state.items() if key != "_view"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_arrays"):
            self._view = self._make_view()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_view")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are uint8
        return tags


class OptimizedPQ(ProductQuantizer):
    """A product quantizer behind a rotation that spreads the variance evenly over the parts.

    The mean is subtracted first. Where parts of the plain quantizer differ in variance or depend on
    each other, as after a PCA, this loses less at the same bytes.

    n_rounds : turns of rotation and codebooks, in alternation, after the start at the principal
        axes dealt to the parts (eigenvalue allocation), 0 to 1000; 0 stays there.
    n_subquantizers, bits, max_iter, batch_size, random_state, n_jobs : see ProductQuantizer.

    mean_ : (d,) float32. rotation_ : (d, d) float32, orthogonal: codes are those of
        (X - mean_) @ rotation_.T.
    codebooks_, n_iter_ (before the rounds), n_features_in_ : see ProductQuantizer.
    Source: Ge et al. 2013. Differs: 4 iterations of k-means a round instead of 1.
    """

    mean_: NDArray[np.float32]
    rotation_: NDArray[np.float32]

    def __init__(
        self,
        *,
        n_subquantizers: int = 10,
        bits: int = 5,
        n_rounds: int = 8,
        max_iter: int = 25,
        batch_size: int = 0,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            n_subquantizers=n_subquantizers,
            bits=bits,
            max_iter=max_iter,
            batch_size=batch_size,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.n_rounds = n_rounds

    def fit(self, X: Any, y: Any = None) -> OptimizedPQ:
        """Learn mean, rotation and codebooks.

        X, y, returns, raises : as ProductQuantizer.fit.
        """
        matrix = self._rows_to_learn(X)
        d = matrix.shape[1]
        rounds = check_integer(self.n_rounds, "n_rounds", minimum=0, maximum=1000)
        # k-means of one cluster ends at the mean, summed in the order of rows.
        mean, _, _ = _core.kmeans(matrix, 1, 1, 0.0, 0, 0, check_n_jobs(self.n_jobs))
        self._learn(matrix, mean, _SHARED, rounds=rounds)
        self.mean_ = mean[0]
        self.rotation_ = np.ascontiguousarray(self._arrays["rotations"][0, :, :d].T)
        return self


class LocallyOptimizedPQ(ProductQuantizer):
    """A product quantizer of residuals, with rotation and codebooks for each cell that has enough.

    A code says where in its cell a vector lies, so it is worth little without the cell, which
    `predict` returns: log2(n_lists) bits more a vector, or none where codes are kept cell by cell.

    n_lists : cells of the coarse quantizer, 1 or more; fewer where there are fewer rows.
    min_rotation_rows, min_codebook_rows : rows of a cell, at least, for a rotation and for
        codebooks of its own; other cells share those of all rows. A rotation takes 4 d^2 bytes and
        codebooks 4 d 2^bits: with few rows a cell that is more than the codes.
    n_subquantizers, bits, max_iter, batch_size, random_state, n_jobs : see ProductQuantizer.

    cluster_centers_ : (n_lists, d) float32, centres of the cells.
    codebooks_ : the shared ones. n_iter_, n_features_in_ : see ProductQuantizer.
    Source: Sec. 5.4; Kalantidis and Avrithis 2014. Differs: cells with little data share; of a cell
    with more than 16,384 rows that many, at equal spacing, are learned from.
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
        batch_size: int = 0,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            n_subquantizers=n_subquantizers,
            bits=bits,
            max_iter=max_iter,
            batch_size=batch_size,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.n_lists = n_lists
        self.min_rotation_rows = min_rotation_rows
        self.min_codebook_rows = min_codebook_rows

    def fit(self, X: Any, y: Any = None) -> LocallyOptimizedPQ:
        """Learn cells, rotations and codebooks.

        X, y, returns, raises : as ProductQuantizer.fit.
        """
        matrix = self._rows_to_learn(X)
        n_lists = min(check_integer(self.n_lists, "n_lists", minimum=1), len(matrix))
        rotation_rows = check_integer(
            self.min_rotation_rows, "min_rotation_rows", minimum=1, maximum=_MOST
        )
        codebook_rows = check_integer(
            self.min_codebook_rows, "min_codebook_rows", minimum=1, maximum=_MOST
        )
        threads, seed = check_n_jobs(self.n_jobs), check_seed(self.random_state)
        centers, _, _ = _core.kmeans(
            matrix, n_lists, self.max_iter, 1e-4, self.batch_size, seed, threads
        )
        cells, _ = _core.assign_nearest(centers, matrix, threads)
        self._learn(
            matrix,
            centers,
            _LOCAL,
            cells=cells,
            min_rotation_rows=rotation_rows,
            min_codebook_rows=codebook_rows,
            seed=seed,
        )
        self.cluster_centers_ = centers
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the cell of each vector, that of the nearest of cluster_centers_.

        X : (n, d) float32, as for `transform`. Returns (n,) int64.
        """
        return self._assign(self._rows(X)).astype(np.int64)

    def inverse_transform(self, codes: Any, cells: Any = None) -> NDArray[np.float32]:
        """Return the vectors that codes stand for in their cells.

        codes : (n, n_subquantizers) uint8, as `transform` returns.
        cells : (n,) integers, as `predict` returns; they have to be given.
        Returns (n, d) float32. Raises ValueError where cells are missing or there is no such cell;
            else as ProductQuantizer.inverse_transform.
        """
        numbers = self._check_codes(codes)
        return self._view.decode(numbers, self._check_cells(cells, len(numbers)))

    def squared_distances(self, X: Any, codes: Any, cells: Any = None) -> NDArray[np.float32]:
        """Return the squared distances of vectors to what codes stand for in their cells.

        X, codes, returns, raises : as ProductQuantizer.squared_distances. cells : as for
            `inverse_transform`. Each row of X costs a table for every cell that occurs.
        """
        numbers = self._check_codes(codes)
        return self._distances(X, numbers, self._check_cells(cells, len(numbers)))

    def _check_cells(self, cells: Any, n: int) -> NDArray[np.uint32]:
        if cells is None:
            raise ValueError(
                "cells must be given, since what a code stands for depends on its cell; got None. "
                "Pass what predict(X) returns"
            )
        where = check_vector(cells, "cells", np.int64, n=n)
        last = len(self.cluster_centers_) - 1
        if len(where) and not 0 <= where.min() <= where.max() <= last:
            raise ValueError(
                f"cells must lie in 0 ... {last}; got {where.min()} ... {where.max()}. Were they "
                "made by another quantizer?"
            )
        return where.astype(np.uint32)

    def _assign(self, matrix: NDArray[np.float32]) -> NDArray[np.uint32]:
        threads = check_n_jobs(self.n_jobs)
        cells, _ = _core.assign_nearest(self._arrays["coarse"], matrix, threads)
        return cells

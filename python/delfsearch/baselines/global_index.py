"""GlobalIndex: exact search among vectors, one per photo, by brute force in parallel blocks.

A float32 matrix product over blocks of fixed size shortlists, with a margin above the product's
rounding error; the shortlisted scores are computed again in float64, in one fixed order. So an
answer does not depend on n_jobs, on the other queries of the call, or on the block it fell into,
and equal vectors have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

from delfsearch._validation import check_integer, check_matrix, check_n_jobs, check_vector
from delfsearch.extraction.reduction import l2_normalize

_QUERY_BLOCK = 64
_DATABASE_BLOCK = 16_384


class GlobalIndex(BaseEstimator):  # type: ignore[misc]
    """Exact nearest vectors by inner product, the cosine where vectors are normalised.

    n_jobs : threads, None means 1, -1 all cores. The answers do not depend on it.
    Learned: vectors_ (n, d) float32 and ids_ (n,) int64, in the order of ids.
    """

    def __init__(self, *, n_jobs: int | None = None) -> None:
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None, *, ids: Any = None) -> GlobalIndex:
        """Index vectors, replacing what was indexed before; returns self.

        X : (n, d) float32, n >= 1. ids : (n,) distinct int64 at least 0; None means 0, 1, 2, ...
        Raises ValueError where a value is not finite, ids repeat or lengths differ.
        """
        vectors = check_matrix(X, "X", min_rows=1)
        n = len(vectors)
        numbers = np.arange(n) if ids is None else check_vector(ids, "ids", np.int64, n=n)
        if len(np.unique(numbers)) != n:
            raise ValueError("ids must be distinct; some are there twice")
        if numbers.min() < 0:
            raise ValueError(f"ids must be at least 0; got {numbers.min()}")
        order = np.argsort(numbers)
        self.ids_ = numbers[order].astype(np.int64)
        self.vectors_ = np.ascontiguousarray(vectors[order])
        self.n_features_in_ = vectors.shape[1]
        return self

    def query(
        self,
        Q: Any,
        *,
        k: int = 100,
        exclude_ids: Sequence[Iterable[int] | None] | None = None,
        query_expansion: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k best vectors of each query.

        Q : (m, d) float32, of the dimension in fit. k : answers per query, at least 1.
        exclude_ids : for each query the ids that must not answer (a query that is itself
            indexed), or None.
        query_expansion : rounds; in each a query becomes the normalised average of itself and its
            best answer. 0 means none, 1 is what DIR+QE and siaMAC+QE do.
        Returns scores (m, k) float32, falling, -inf where missing; ids (m, k) int64, -1 where
        missing. Equal scores are ordered by lower id.
        Raises NotFittedError; ValueError where d differs or a value is not finite.
        Source: Sec. 5.3 (query expansion).
        """
        if not hasattr(self, "vectors_"):
            raise NotFittedError("this GlobalIndex holds nothing yet; call fit first")
        queries = check_matrix(Q, "Q", n_columns=self.n_features_in_)
        k = check_integer(k, "k", minimum=1)
        rounds = check_integer(query_expansion, "query_expansion", minimum=0)
        hidden = self._positions(exclude_ids, len(queries))
        for _ in range(rounds):
            queries = self._expanded(queries, hidden)
        return self._search(queries, k, hidden)

    def expand(
        self, Q: Any, *, exclude_ids: Sequence[Iterable[int] | None] | None = None
    ) -> NDArray[np.float32]:
        """Return the normalised averages of each query (m, d) and its best answer.

        A query that nothing answers is only normalised. Arguments and errors as in query.
        """
        if not hasattr(self, "vectors_"):
            raise NotFittedError("this GlobalIndex holds nothing yet; call fit first")
        queries = check_matrix(Q, "Q", n_columns=self.n_features_in_)
        return self._expanded(queries, self._positions(exclude_ids, len(queries)))

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.ids_) if hasattr(self, "ids_") else 0

    def _expanded(
        self, queries: NDArray[np.float32], hidden: list[NDArray[np.int64]]
    ) -> NDArray[np.float32]:
        _, ids = self._search(queries, 1, hidden)
        found = np.flatnonzero(ids[:, 0] >= 0)
        average = queries.astype(np.float64)
        average[found] += self.vectors_[np.searchsorted(self.ids_, ids[found, 0])]
        result: NDArray[np.float32] = l2_normalize(average).astype(np.float32)
        return result

    def _positions(
        self, exclude_ids: Sequence[Iterable[int] | None] | None, n: int
    ) -> list[NDArray[np.int64]]:
        """Return for each query the rows that must not answer; ids that are not here are none."""
        if exclude_ids is None:
            return [np.zeros(0, np.int64)] * n
        if len(exclude_ids) != n:
            raise ValueError(
                f"exclude_ids must have one entry per query ({n}); got {len(exclude_ids)}"
            )
        result = []
        for ids in exclude_ids:
            wanted = check_vector([] if ids is None else list(ids), "exclude_ids", np.int64)
            at = np.minimum(np.searchsorted(self.ids_, wanted), len(self.ids_) - 1)
            result.append(np.unique(at[self.ids_[at] == wanted]).astype(np.int64))
        return result

    def _search(
        self, queries: NDArray[np.float32], k: int, hidden: list[NDArray[np.int64]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        squares = np.einsum("ij,ij->i", self.vectors_, self.vectors_, dtype=np.float64)
        longest = float(np.sqrt(squares.max()))

        def block(start: int) -> None:
            stop = min(start + _QUERY_BLOCK, len(queries))
            shortlists = self._shortlists(queries[start:stop], k, hidden[start:stop], longest)
            for i, rows in enumerate(shortlists, start=start):
                # One fixed order of additions for each pair, whatever else is in the block.
                exact = np.einsum(
                    "ij,j->i", self.vectors_[rows], queries[i], dtype=np.float64, optimize=False
                )
                best = np.lexsort((rows, -exact))[:k]
                scores[i, : len(best)] = exact[best]
                ids[i, : len(best)] = self.ids_[rows[best]]

        workers = check_n_jobs(self.n_jobs) or cpu_count() or 1
        starts = range(0, len(queries), _QUERY_BLOCK)
        # The blocks run side by side, so each product gets one thread.
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            list(pool.map(block, starts))
        return scores, ids

    def _shortlists(
        self,
        queries: NDArray[np.float32],
        k: int,
        hidden: list[NDArray[np.int64]],
        longest: float,
    ) -> list[NDArray[np.int64]]:
        """Return for each query the rows among which its k best are sure to be, rising."""
        n, d = self.vectors_.shape
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        # Twice the bound d * 2^-24 |q| |x| on the error of a float32 inner product, both ways.
        margins = (4.0 * d * 2.0**-24 * longest * lengths).astype(np.float32)
        kept: list[list[NDArray[np.int64]]] = [[] for _ in queries]
        values: list[list[NDArray[np.float32]]] = [[] for _ in queries]
        for start in range(0, n, _DATABASE_BLOCK):
            products = queries @ self.vectors_[start : start + _DATABASE_BLOCK].T
            width = products.shape[1]
            for i, row in enumerate(products):
                inside = hidden[i][(hidden[i] >= start) & (hidden[i] < start + width)] - start
                row[inside] = -np.inf
                if width > k:
                    bound = np.partition(row, width - k)[width - k] - margins[i]
                    at = np.flatnonzero((row >= bound) & (row > -np.inf))
                else:
                    at = np.flatnonzero(row > -np.inf)
                kept[i].append(at + start)
                values[i].append(row[at])
        result = []
        for i in range(len(queries)):
            rows, approximate = np.concatenate(kept[i]), np.concatenate(values[i])
            if len(rows) > k:
                bound = np.partition(approximate, len(rows) - k)[len(rows) - k] - margins[i]
                rows = rows[approximate >= bound]
            result.append(rows)
        return result

"""Judging numbered answers in arrays: the same as ``judging``, without Python per answer.

Answers lie in a matrix (queries, answers) of database numbers, -1 where a query has fewer. Which of
them are right is asked for some rows at a time, so that 100,000 queries with 100 answers each need
little more memory than they take themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.judging import TIES, tie_key

# Answers handled at once: temporary arrays of some tens of megabytes, whatever the total.
_BLOCK = 1 << 20


def judge_arrays(
    ids: Any,
    scores: Any,
    positives: Sequence[Collection[int]],
    junk: Sequence[Collection[int]] | None = None,
    *,
    own_ids: Any = None,
    query_ids: Sequence[Hashable] = (),
    scenes: Sequence[str] = (),
    ties: str = "wrong_first",
) -> JudgedQueries:
    """Compare numbered answers with ground truth, without Python per answer.

    ids : (q, k) integers >= 0, database photos; -1 where a query has fewer than k answers.
    scores : (q, k) numbers, higher is surer, in any order; not looked at where ids is -1.
    positives, junk : q collections of integers >= 0, as in judge.
    own_ids : (q,) integers, each query's own number in the database, -1 where it is not in it; its
        own photo is left out as in judge.
    query_ids, scenes : q names each, carried to the result. ties : see the module.
    Raises ValueError as judge does, and where shapes do not fit.
    """
    table = NumberedAnswers.checked(ids, scores, own_ids, query_ids, scenes, ties)
    n_queries = len(table.ids)
    relevant = NumberedTruth.checked(positives, n_queries, "positives", table.own_ids)
    ignored = NumberedTruth.checked(
        [()] * n_queries if junk is None else junk, n_queries, "junk", table.own_ids
    )
    relevant.refuse_common(ignored)

    def flags(rows: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        block = table.ids[rows]
        return relevant.holds(block, rows), ignored.holds(block, rows)

    return table.judged(flags, relevant.counts)


class FlagAnswers(Protocol):
    """Says of the answers of some rows which are right and which are junk, (rows, k) bool each."""

    def __call__(self, rows: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (correct, junk)."""


@dataclass(frozen=True, eq=False)
class NumberedAnswers:
    """The checked answers of judge_arrays and judge_by_location."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    own_ids: NDArray[np.int64]
    query_ids: tuple[Hashable, ...]
    scenes: tuple[str, ...]
    ties: str

    @staticmethod
    def checked(
        ids: Any,
        scores: Any,
        own_ids: Any,
        query_ids: Sequence[Hashable],
        scenes: Sequence[str],
        ties: str,
    ) -> NumberedAnswers:
        """Return the arguments as arrays, or refuse them."""
        check_choice(ties, "ties", TIES)
        ids = _integers(ids, "ids")
        if ids.ndim != 2:
            raise ValueError(f"ids must be a 2-D array (queries, answers); got shape {ids.shape}")
        scores = np.asarray(scores)
        if scores.dtype.kind not in "fiu":
            raise ValueError(f"scores must be numbers; got dtype {scores.dtype}")
        if scores.shape != ids.shape:
            raise ValueError(f"scores must have the shape of ids {ids.shape}; got {scores.shape}")
        n_queries = len(ids)
        own = np.full(n_queries, -1) if own_ids is None else _integers(own_ids, "own_ids")
        if own.shape != (n_queries,):
            raise ValueError(f"own_ids must have {n_queries} elements; got shape {own.shape}")
        for name, values in (("query_ids", query_ids), ("scenes", scenes)):
            if len(values) not in (0, n_queries):
                raise ValueError(f"{name} must have {n_queries} elements; got {len(values)}")
        return NumberedAnswers(
            ids, scores.astype(np.float64, copy=False), own, tuple(query_ids), tuple(scenes), ties
        )

    def judged(self, flags: FlagAnswers, n_positives: NDArray[np.int64]) -> JudgedQueries:
        """Drop what is junk or the query itself, sort, and flatten, some rows at a time."""
        n_queries, width = self.ids.shape
        step = max(1, _BLOCK // max(1, width))
        parts = []
        for start in range(0, n_queries, step):
            rows = slice(start, min(start + step, n_queries))
            correct, junk = flags(rows)
            parts.append(self._judged_rows(rows, correct, junk))
        scores = [part[0] for part in parts]
        counts = np.concatenate([np.zeros(1, np.int64), *(part[2] for part in parts)])
        return JudgedQueries(
            scores=np.concatenate([np.zeros(0), *scores]),
            correct=np.concatenate([np.zeros(0, bool), *(part[1] for part in parts)]),
            offsets=np.cumsum(counts),
            n_positives=n_positives,
            ids=self.query_ids,
            scenes=self.scenes,
            self_excluded=np.concatenate([np.zeros(0, bool), *(part[3] for part in parts)]),
        )

    def _judged_rows(
        self, rows: slice, correct: NDArray[np.bool_], junk: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
        ids = self.ids[rows]
        present = ids >= 0
        self._refuse_rows(rows, ids, present)
        itself = present & (ids == self.own_ids[rows, None])
        kept = present & ~junk & ~itself
        # Absent answers sort behind all others, whose scores are finite.
        scores = np.where(kept, self.scores[rows], -np.inf)
        correct = correct & kept
        # Rows that fall strictly and then end, the usual case, are in order already.
        unordered = ((scores[:, 1:] >= scores[:, :-1]) & kept[:, 1:]).any(axis=1)
        if unordered.any():
            some, right = scores[unordered], correct[unordered]
            order = np.lexsort((tie_key(right, self.ties), -some), axis=-1)
            scores[unordered] = np.take_along_axis(some, order, axis=1)
            correct[unordered] = np.take_along_axis(right, order, axis=1)
            kept = scores != -np.inf
        return scores[kept], correct[kept], kept.sum(axis=1, dtype=np.int64), itself.any(axis=1)

    def _refuse_rows(self, rows: slice, ids: NDArray[np.int64], present: NDArray[np.bool_]) -> None:
        bad = present & ~np.isfinite(self.scores[rows])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"scores must be finite; got {self.scores[rows.start + row, column]} for answer "
                f"{column}{self._whose(rows.start + row)}"
            )
        if ids.size and ids.min() < -1:
            raise ValueError(f"ids must be at least 0, or -1 for no answer; got {ids.min()}")
        ordered = np.sort(ids, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            row, column = np.argwhere(twice)[0]
            raise ValueError(
                f"answers must hold every id once; got {ordered[row, column]} twice or more"
                f"{self._whose(rows.start + row)}"
            )

    def _whose(self, row: int) -> str:
        return f" in query {self.query_ids[row] if self.query_ids else int(row)!r}"


@dataclass(frozen=True, eq=False)
class NumberedTruth:
    """One set of ids per query: values[offsets[i]:offsets[i + 1]] rise and belong to query i."""

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @staticmethod
    def checked(
        collections: Sequence[Collection[int]],
        n_queries: int,
        name: str,
        own_ids: NDArray[np.int64],
    ) -> NumberedTruth:
        """Return the sets without the queries' own ids, or refuse them."""
        if len(collections) != n_queries:
            raise ValueError(
                f"{name} must have {n_queries} collections, one per query; got {len(collections)}"
            )
        sizes = np.array([len(collection) for collection in collections], np.int64)
        values = _integers(list(chain.from_iterable(collections)), name)
        if len(values) and values.min() < 0:
            raise ValueError(f"{name} must be ids of at least 0; got {values.min()}")
        rows = np.repeat(np.arange(n_queries), sizes)
        kept = values != own_ids[rows]
        values, rows = values[kept], rows[kept]
        order = np.lexsort((values, rows))
        values, rows = values[order], rows[order]
        first = np.ones(len(values), bool)
        first[1:] = (values[1:] != values[:-1]) | (rows[1:] != rows[:-1])
        counts = np.bincount(rows[first], minlength=n_queries)
        return NumberedTruth(values[first], np.concatenate([[0], np.cumsum(counts)]))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of ids of each query, (q,)."""
        return np.diff(self.offsets)

    def holds(self, ids: NDArray[np.int64], rows: slice) -> NDArray[np.bool_]:
        """Return for ids (r, k) of the queries rows which are in their query's set."""
        start, stop = self.offsets[rows.start], self.offsets[rows.stop]
        values = self.values[start:stop]
        if not len(values) or not ids.size:
            return np.zeros(ids.shape, bool)
        counts = self.counts[rows]
        base = int(max(values.max(), ids.max())) + 1
        if base >= 2**62 // len(ids):  # numbers too large to put the row in front: number them anew
            known, values = np.unique(values, return_inverse=True)
            places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            ids = np.where(known[places] == ids, places, -1)
            base = len(known) + 1
        keys = np.repeat(np.arange(len(ids)) * base, counts) + values
        wanted = np.arange(len(ids))[:, None] * base + ids
        places = np.minimum(np.searchsorted(keys, wanted.ravel()), len(keys) - 1)
        return np.asarray((keys[places] == wanted.ravel()).reshape(ids.shape) & (ids >= 0))

    def refuse_common(self, junk: NumberedTruth) -> None:
        """Refuse an id that a query has both here and in junk."""
        rows = np.concatenate([np.repeat(np.arange(len(t.counts)), t.counts) for t in (self, junk)])
        values = np.concatenate([self.values, junk.values])
        order = np.lexsort((values, rows))
        rows, values = rows[order], values[order]
        both = np.flatnonzero((rows[1:] == rows[:-1]) & (values[1:] == values[:-1]))
        if len(both):
            raise ValueError(
                f"ids must not be both positive and junk; got {values[both[0]]} in query "
                f"{rows[both[0]]} ({len(both)} in all)"
            )


def _integers(values: Any, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers; got dtype {array.dtype}")
    return array.astype(np.int64, copy=False)

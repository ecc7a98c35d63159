"""Judged queries: answers compared with the ground truth, the input of every metric.

A JudgedQuery is one query. JudgedQueries is many of them in flat arrays, itself a sequence of
JudgedQuery: metrics take either a list of the first or the second, which needs no Python per
answer. Junk answers and the query's own photo are gone by now (``judging`` drops them).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class JudgedQuery:
    """One query's answers, best first, junk and the query itself left out.

    scores : (n,) float64, finite, falling. correct : (n,) bool. n_positives : size of the ground
    truth, 0 for a distractor query. id : the query's name, None where it has none. scene : queries
    of one scene are resampled together; empty where it belongs to none. self_excluded : whether
    the query's own photo was among its answers and was left out.
    """

    scores: NDArray[np.float64]
    correct: NDArray[np.bool_]
    n_positives: int
    id: Hashable = None
    scene: str = ""
    self_excluded: bool = False


@dataclass(frozen=True, eq=False)
class JudgedQueries(Sequence[JudgedQuery]):
    """Many judged queries in flat arrays; a sequence of JudgedQuery.

    scores, correct : (n,) float64 and bool, all answers; query i owns offsets[i]:offsets[i + 1],
        best first. offsets : (q + 1,) int64. n_positives : (q,) int64.
    ids, scenes, self_excluded : as in JudgedQuery, q of each, or empty where none is known.
    Raises ValueError where the arrays do not fit together, a score is not finite or rises within a
    query, or a query has more right answers than positives.
    """

    scores: NDArray[np.float64] = field(repr=False)
    correct: NDArray[np.bool_] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    n_positives: NDArray[np.int64] = field(repr=False)
    ids: tuple[Hashable, ...] = field(repr=False, default=())
    scenes: tuple[str, ...] = field(repr=False, default=())
    self_excluded: NDArray[np.bool_] = field(
        repr=False, default_factory=lambda: np.zeros(0, np.bool_)
    )

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.n_positives)

    @overload
    def __getitem__(self, key: int) -> JudgedQuery: ...

    @overload
    def __getitem__(self, key: slice) -> JudgedQueries: ...

    def __getitem__(self, key: int | slice) -> JudgedQuery | JudgedQueries:
        """Return one query, its arrays views of these, or the queries of a slice."""
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        index = range(len(self))[key]
        start, stop = self.offsets[index], self.offsets[index + 1]
        return JudgedQuery(
            scores=self.scores[start:stop],
            correct=self.correct[start:stop],
            n_positives=int(self.n_positives[index]),
            id=self.ids[index] if self.ids else None,
            scene=self.scenes[index] if self.scenes else "",
            self_excluded=bool(self.self_excluded[index]) if len(self.self_excluded) else False,
        )

    @property
    def n_answers(self) -> NDArray[np.int64]:
        """Number of answers of each query, (q,)."""
        return np.diff(self.offsets)

    @property
    def query_of(self) -> NDArray[np.int64]:
        """Number of the query that owns each answer, (n,)."""
        return np.repeat(np.arange(len(self)), self.n_answers)

    @property
    def self_excluded_ids(self) -> tuple[Hashable, ...]:
        """Queries whose own photo was among their answers and was left out: id, or number."""
        rows = np.flatnonzero(self.self_excluded)
        return tuple(self.ids[row] if self.ids else int(row) for row in rows)

    def take(self, rows: Any) -> JudgedQueries:
        """Return the queries of these numbers, in this order; a number may come twice."""
        rows = np.asarray(rows, dtype=np.int64)
        counts = self.n_answers[rows]
        offsets = _offsets(counts)
        answers = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return JudgedQueries(
            scores=self.scores[answers],
            correct=self.correct[answers],
            offsets=offsets,
            n_positives=self.n_positives[rows],
            ids=tuple(self.ids[row] for row in rows) if self.ids else (),
            scenes=tuple(self.scenes[row] for row in rows) if self.scenes else (),
            self_excluded=self.self_excluded[rows]
            if len(self.self_excluded)
            else np.zeros(0, bool),
        )

    @staticmethod
    def of(queries: Sequence[JudgedQuery]) -> JudgedQueries:
        """Return queries in flat arrays: themselves if they are, or those of a list.

        Raises ValueError as the class does, and TypeError for what is not a JudgedQuery.
        """
        if isinstance(queries, JudgedQueries):
            return queries
        for query in queries:
            if not isinstance(query, JudgedQuery):
                raise TypeError(
                    f"queries must be JudgedQuery values (of judge); got {type(query).__name__}"
                )
        known = any(query.id is not None for query in queries)
        return JudgedQueries(
            scores=_concatenated([query.scores for query in queries], np.float64),
            correct=_concatenated([query.correct for query in queries], np.bool_),
            offsets=_offsets(np.array([len(query.scores) for query in queries], np.int64)),
            n_positives=np.array([query.n_positives for query in queries], np.int64),
            ids=tuple(query.id for query in queries) if known else (),
            scenes=tuple(q.scene for q in queries) if any(q.scene for q in queries) else (),
            self_excluded=np.array([query.self_excluded for query in queries], np.bool_),
        )

    @staticmethod
    def concatenate(parts: Sequence[Sequence[JudgedQuery]]) -> JudgedQueries:
        """Return the queries of all parts, one after the other.

        Ids and scenes stay where at least one part knows them (None and "" for the others).
        """
        packed = [JudgedQueries.of(part) for part in parts]
        ids: tuple[Hashable, ...] = ()
        scenes: tuple[str, ...] = ()
        if any(part.ids for part in packed):
            ids = tuple(i for part in packed for i in part.ids or (None,) * len(part))
        if any(part.scenes for part in packed):
            scenes = tuple(s for part in packed for s in part.scenes or ("",) * len(part))
        excluded = [
            part.self_excluded if len(part.self_excluded) else np.zeros(len(part), bool)
            for part in packed
        ]
        return JudgedQueries(
            scores=_concatenated([part.scores for part in packed], np.float64),
            correct=_concatenated([part.correct for part in packed], np.bool_),
            offsets=_offsets(_concatenated([part.n_answers for part in packed], np.int64)),
            n_positives=_concatenated([part.n_positives for part in packed], np.int64),
            ids=ids,
            scenes=scenes,
            self_excluded=_concatenated(excluded, np.bool_),
        )


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _concatenated(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _check(judged: JudgedQueries) -> None:
    n, q = len(judged.scores), len(judged.n_positives)
    if len(judged.correct) != n:
        raise ValueError(
            f"correct must have one value per score; got {len(judged.correct)} for {n} scores"
        )
    offsets = judged.offsets
    if len(offsets) != q + 1 or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to {n} in {q + 1} steps, one query each")
    for name in ("ids", "scenes", "self_excluded"):
        got = len(getattr(judged, name))
        if got not in (0, q):
            raise ValueError(f"{name} must be {q}, one per query, or none; got {got}")
    if not np.isfinite(judged.scores).all():
        bad = np.flatnonzero(~np.isfinite(judged.scores))[0]
        raise ValueError(f"scores must be finite; got {judged.scores[bad]}{_whose(judged, bad)}")
    rises = judged.scores[1:] > judged.scores[:-1]
    starts = offsets[1:-1]
    rises[starts[(starts > 0) & (starts < n)] - 1] = False
    if rises.any():
        bad = np.flatnonzero(rises)[0] + 1
        raise ValueError(
            f"scores must fall within a query; got {judged.scores[bad - 1]} and then "
            f"{judged.scores[bad]}{_whose(judged, bad)}. judge sorts them"
        )
    if q and judged.n_positives.min() < 0:
        raise ValueError(f"n_positives must be at least 0; got {judged.n_positives.min()}")
    found = np.diff(np.concatenate([[0], np.cumsum(judged.correct)])[offsets])
    if (found > judged.n_positives).any():
        row = int(np.flatnonzero(found > judged.n_positives)[0])
        raise ValueError(
            f"a query must not have more right answers than positives; got {found[row]} and "
            f"{judged.n_positives[row]} in query {judged.ids[row] if judged.ids else row!r}"
        )


def _whose(judged: JudgedQueries, answer: Any) -> str:
    row = int(np.searchsorted(judged.offsets, answer, side="right")) - 1
    return f" in query {judged.ids[row] if judged.ids else row!r}"

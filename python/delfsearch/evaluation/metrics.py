"""Precision and recall over all queries together, where some queries have no right answer.

A query is a list of answers with scores. Everything here pools the answers of all queries, as
equations (2) and (3) of the paper do: one threshold on the score serves every query, distractor
queries add to what is retrieved and have no ground truth, and answers of equal score enter
together. Junk answers must be removed first (``judge`` does it).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class JudgedQuery:
    """One query's answers, best first, junk and the query itself left out.

    scores : (n,) float64, falling. correct : (n,) bool. n_positives : size of the ground truth.
    """

    scores: NDArray[np.float64]
    correct: NDArray[np.bool_]
    n_positives: int


def judge(
    answers: Sequence[tuple[Hashable, float]],
    positives: Collection[Hashable],
    junk: Collection[Hashable] = (),
) -> JudgedQuery:
    """Compare one query's answers with its ground truth.

    answers : (id, score) pairs in any order; ties keep the given order.
    positives, junk : ids; an id in junk is ignored wherever it ranks.
    Raises ValueError for a duplicated answer, a score that is not a number, or an id in both sets.
    """
    relevant, ignored = set(positives), set(junk)
    if relevant & ignored:
        raise ValueError(f"ids must not be both positive and junk; got {relevant & ignored}")
    ids = [identity for identity, _ in answers]
    if len(set(ids)) != len(ids):
        raise ValueError("answers must hold every id once; got a duplicate")
    scores = np.array([score for _, score in answers], dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers; got NaN")
    order = [i for i in np.argsort(-scores, kind="stable") if ids[i] not in ignored]
    return JudgedQuery(
        scores=scores[order],
        correct=np.array([ids[i] in relevant for i in order], dtype=bool),
        n_positives=len(relevant),
    )


def average_precision(query: JudgedQuery) -> float:
    """Average precision as the Oxford protocol computes it (trapezoids under the curve).

    Returns nan for a query without ground truth.
    """
    if query.n_positives == 0:
        return float("nan")
    area, old_precision = 0.0, 1.0
    found = 0
    for rank, right in enumerate(query.correct, start=1):
        if not right:
            old_precision = found / rank
            continue
        found += 1
        precision = found / rank
        area += (old_precision + precision) / 2 / query.n_positives
        old_precision = precision
    return area


def mean_average_precision(queries: Sequence[JudgedQuery]) -> float:
    """Mean of average_precision over the queries that have ground truth."""
    values = [average_precision(query) for query in queries if query.n_positives]
    return float(np.mean(values)) if values else float("nan")


def recall_at_rank_one(queries: Sequence[JudgedQuery]) -> float:
    """Share of the queries with ground truth whose first answer is right (R@1)."""
    values = [bool(len(q.correct) and q.correct[0]) for q in queries if q.n_positives]
    return float(np.mean(values)) if values else float("nan")


@dataclass(frozen=True, eq=False)
class PooledCurve:
    """Precision and recall of all queries together at every distinct score, best score first.

    thresholds, precision, recall : (t,) float64. true_positives, retrieved : (t,) int64.
    Source: equations (2) and (3).
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    retrieved: NDArray[np.int64]


def pooled_curve(queries: Sequence[JudgedQuery]) -> PooledCurve:
    """Pool the answers of all queries, distractor queries included."""
    scores = np.concatenate([q.scores for q in queries]) if queries else np.zeros(0)
    correct = np.concatenate([q.correct for q in queries]) if queries else np.zeros(0, bool)
    n_positives = sum(q.n_positives for q in queries)
    order = np.argsort(-scores, kind="stable")
    scores, correct = scores[order], correct[order]
    # The last answer of each run of equal scores: they enter together.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    true_positives = np.cumsum(correct)[last].astype(np.int64)
    retrieved = last.astype(np.int64) + 1
    return PooledCurve(
        thresholds=scores[last],
        precision=true_positives / retrieved,
        recall=true_positives / max(n_positives, 1),
        true_positives=true_positives,
        retrieved=retrieved,
    )


def threshold_at_precision(curve: PooledCurve, precision: float) -> float:
    """Lowest score threshold at which precision still holds; inf where none does."""
    reached = np.flatnonzero(curve.precision >= precision)
    return float(curve.thresholds[reached[-1]]) if len(reached) else float("inf")


def recall_at_precision(queries: Sequence[JudgedQuery], precision: float = 0.9) -> float:
    """Highest pooled recall at a threshold whose pooled precision is at least ``precision``.

    0 where no threshold reaches it. Source: Sec. 4.2 (R@90%).
    """
    curve = pooled_curve(queries)
    reached = curve.recall[curve.precision >= precision]
    return float(reached.max()) if len(reached) else 0.0


def answered_at_precision(queries: Sequence[JudgedQuery], precision: float = 0.9) -> float:
    """Share of the queries with ground truth whose first answer is right and accepted.

    The threshold is set for pooled precision over all queries, distractor queries included. Unlike
    R@90% it does not depend on how many positives a query has.
    """
    threshold = threshold_at_precision(pooled_curve(queries), precision)
    values = [
        bool(len(q.correct) and q.correct[0] and q.scores[0] >= threshold)
        for q in queries
        if q.n_positives
    ]
    return float(np.mean(values)) if values else float("nan")

"""Metrics that read the ranking of each query, and their means over the queries with ground truth.

Each comes as the values of all queries (nan for those without ground truth) and as their mean.
Where scores tie, the ranking is the one that judging made (see ``judging``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_integer
from delfsearch.evaluation.judged import JudgedQueries, JudgedQuery


def average_precision(query: JudgedQuery) -> float:
    """Average precision as the Oxford protocol computes it (trapezoids under the curve).

    Returns nan for a query without ground truth.
    Source: the Oxford Buildings evaluation code; the same arithmetic is in the revisited one.
    """
    return float(average_precisions([query])[0])


def average_precisions(queries: Sequence[JudgedQuery]) -> NDArray[np.float64]:
    """Oxford average precision of each query.

    With r the rank of the j-th right answer (both from 1) and G positives, it adds
    ((j - 1) / (r - 1) + j / r) / (2 G); the first fraction is 1 where r = 1. Positives that are
    not among the answers add nothing.

    Returns (q,) float64 in [0, 1], nan for queries without ground truth.
    """
    judged = JudgedQueries.of(queries)
    found, rank, query_of = _right_answers(judged)
    before = np.ones(len(found))
    np.divide(found - 1, rank - 1, out=before, where=rank > 1)
    trapezoids = (before + found / rank) / 2
    # Divided once, after the sum: a perfect ranking gives exactly 1.
    return _per_positive(judged, trapezoids, query_of, judged.n_positives)


def mean_average_precision(queries: Sequence[JudgedQuery]) -> float:
    """Mean of average_precision over the queries that have ground truth (mAP); nan if none has.

    Source: Table 3.
    """
    return _mean(average_precisions(queries))


def average_precisions_at(queries: Sequence[JudgedQuery], k: int = 100) -> NDArray[np.float64]:
    """Average precision of the first k answers of each query, as Google Landmarks retrieval has it.

    The sum of the precision at each right answer of rank at most k, over min(G, k).

    Returns (q,) float64 in [0, 1], nan for queries without ground truth.
    Source: the Google Landmarks retrieval challenge (k = 100).
    """
    check_integer(k, "k", minimum=1)
    judged = JudgedQueries.of(queries)
    found, rank, query_of = _right_answers(judged)
    early = rank <= k
    return _per_positive(
        judged, (found / rank)[early], query_of[early], np.minimum(judged.n_positives, k)
    )


def mean_average_precision_at(queries: Sequence[JudgedQuery], k: int = 100) -> float:
    """Mean of average_precisions_at over the queries that have ground truth (mAP@100)."""
    return _mean(average_precisions_at(queries, k))


def precisions_at(queries: Sequence[JudgedQuery], k: int = 10) -> NDArray[np.float64]:
    """Precision of each query's first min(r, k) answers, r the rank of its last positive.

    Returns (q,) float64 in [0, 1], nan for queries without ground truth.
    Source: mP@k of the revisited Oxford and Paris evaluation. Differs: its code expects a ranking
    of the whole database. Where positives are not among the answers, their rank is beyond any k
    here, so that a short list of answers gains nothing by its shortness.
    """
    check_integer(k, "k", minimum=1)
    judged = JudgedQueries.of(queries)
    _, rank, query_of = _right_answers(judged)
    n_found = np.bincount(query_of, minlength=len(judged))
    last = np.zeros(len(judged), np.int64)
    np.maximum.at(last, query_of, rank)
    depth = np.where(n_found == judged.n_positives, np.minimum(last, k), k)
    early = rank <= depth[query_of]
    return _per_positive(judged, np.ones(int(early.sum())), query_of[early], depth)


def mean_precision_at(queries: Sequence[JudgedQuery], k: int = 10) -> float:
    """Mean of precisions_at over the queries that have ground truth (mP@k)."""
    return _mean(precisions_at(queries, k))


def first_answers_right(queries: Sequence[JudgedQuery]) -> NDArray[np.float64]:
    """Whether the first answer of each query is right: 1 or 0; nan without ground truth."""
    judged = JudgedQueries.of(queries)
    _, rank, query_of = _right_answers(judged)
    first = query_of[rank == 1]
    return _per_positive(judged, np.ones(len(first)), first, np.minimum(judged.n_positives, 1))


def recall_at_rank_one(queries: Sequence[JudgedQuery]) -> float:
    """Share of the queries with ground truth whose first answer is right (R@1)."""
    return _mean(first_answers_right(queries))


def _right_answers(
    judged: JudgedQueries,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return of every right answer its number among the right ones, its rank and its query."""
    places = np.flatnonzero(judged.correct).astype(np.int64)
    query_of = np.searchsorted(judged.offsets, places, side="right") - 1
    rank = places - judged.offsets[query_of] + 1
    before = np.searchsorted(places, judged.offsets[:-1])  # right answers of earlier queries
    found = np.arange(len(places)) - before[query_of] + 1
    return found, rank, query_of


def _per_positive(
    judged: JudgedQueries,
    values: NDArray[np.float64],
    query_of: NDArray[np.int64],
    divisor: NDArray[np.int64],
) -> NDArray[np.float64]:
    result = np.full(len(judged), np.nan)
    sums = np.bincount(query_of, weights=values, minlength=len(judged))
    np.divide(sums, divisor, out=result, where=judged.n_positives > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    # Sorted, so that the order of the queries does not change the last bit.
    return float(np.sort(known).mean()) if len(known) else float("nan")

"""Metrics over the answers of all queries together, where some queries have no right answer.

One threshold on the score serves every query (equations 2 and 3 of the paper): distractor queries
add to what is retrieved and have no ground truth, and answers of equal score enter together, so
that neither the order of the queries nor that of tied answers matters. An average of per-query
figures would not do: it cannot see an answer to a query that has none.

Each metric comes twice: as a function of judged queries, and as ``prepare_...``, which sorts once
and returns the metric as a function of how often each query counts, (r, q) -> (r,) or (r, k): the
bootstrap asks for thousands of resamples. The plain function is the prepared one with every query
counted once, so there is one definition of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_real
from delfsearch.evaluation.judged import JudgedQueries, JudgedQuery

# (r, q) counts of the queries -> (r,) or (r, k) values of the metric, one row per resample.
Prepared = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class PooledCurve:
    """Precision, recall and true positives of all queries together, at every distinct score.

    thresholds, precision, recall : (t,) float64, best score first. true_positives, retrieved : (t,)
    int64. precision over recall is the precision-recall curve, precision over true_positives the
    precision-TP curve (Fig. 4). Recall is 0 where there is no ground truth at all.
    Source: equations (2) and (3).
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    retrieved: NDArray[np.int64]


def pooled_curve(queries: Sequence[JudgedQuery]) -> PooledCurve:
    """Pool the answers of all queries, distractor queries included.

    queries : judged queries, in any order.
    Source: equations (2) and (3).
    """
    judged = JudgedQueries.of(queries)
    order = np.argsort(-judged.scores, kind="stable")
    scores, correct = judged.scores[order], judged.correct[order]
    last = _run_ends(scores)
    true_positives = np.cumsum(correct)[last].astype(np.int64)
    retrieved = last.astype(np.int64) + 1
    return PooledCurve(
        thresholds=scores[last],
        precision=true_positives / retrieved,
        recall=true_positives / max(int(judged.n_positives.sum()), 1),
        true_positives=true_positives,
        retrieved=retrieved,
    )


def threshold_at_precision(curve: PooledCurve, precision: float = 0.9) -> float:
    """Lowest score threshold at which the pooled precision is at least ``precision``.

    Returns inf where none reaches it.
    """
    check_precision(precision)
    reached = np.flatnonzero(curve.precision >= precision)
    return float(curve.thresholds[reached[-1]]) if len(reached) else float("inf")


def pooled_precision(queries: Sequence[JudgedQuery], threshold: float = -np.inf) -> float:
    """Share of right answers among all answers of at least ``threshold``, over all queries.

    Returns nan where nothing is retrieved. Source: equation (2).
    """
    return _once(prepare_pooled_precision, queries, threshold=threshold)


def pooled_recall(queries: Sequence[JudgedQuery], threshold: float = -np.inf) -> float:
    """Share of the whole ground truth that answers of at least ``threshold`` hold.

    Returns nan where there is no ground truth. Source: equation (3).
    """
    return _once(prepare_pooled_recall, queries, threshold=threshold)


def recall_at_precision(queries: Sequence[JudgedQuery], precision: float = 0.9) -> float:
    """Highest pooled recall at a threshold whose pooled precision is at least ``precision``.

    precision : in (0, 1].
    Returns 0 where no threshold reaches it. Source: Sec. 4.2 (R@90%).
    """
    return _once(prepare_recall_at_precision, queries, precision=precision)


def true_positives_at_precision(queries: Sequence[JudgedQuery], precision: float = 0.9) -> int:
    """Right answers over all queries, at most, at a threshold of at least that pooled precision.

    precision : in (0, 1].
    Returns 0 where no threshold reaches it. A sum, without a unit: it grows with the queries.
    Source: Sec. 4.2, Tables 5 to 7 (TP@95, TP@90, TP@85). Differs: the paper prints figures like
    92.61 without saying in what they are counted; this is the count itself.
    """
    return round(_once(prepare_true_positives_at_precision, queries, precision=precision))


def precision_at_recall(queries: Sequence[JudgedQuery], recall: float = 0.5) -> float:
    """Highest pooled precision at a threshold whose pooled recall is at least ``recall``.

    recall : in [0, 1].
    Returns 0 where no threshold reaches it. Never rises with recall (the interpolated curve).
    """
    return _once(prepare_precision_at_recall, queries, recall=recall)


def answered_at_precision(queries: Sequence[JudgedQuery], precision: float = 0.9) -> float:
    """Share of the queries with ground truth whose first answer is right and accepted.

    The threshold is set for pooled precision over all queries, distractor queries included. Unlike
    R@90% it does not depend on how many positives a query has.

    precision : in (0, 1].
    Returns nan where no query has ground truth.
    """
    return _once(prepare_answered_at_precision, queries, precision=precision)


def answered_at_threshold(queries: Sequence[JudgedQuery], threshold: float) -> float:
    """Share of the queries with ground truth whose first answer is right and reaches ``threshold``.

    What one threshold, set elsewhere (threshold_at_precision of all queries), gives a part of them.

    Returns nan where no query has ground truth.
    """
    return _once(prepare_answered_at_threshold, queries, threshold=threshold)


def global_average_precision(queries: Sequence[JudgedQuery]) -> float:
    """Average precision of the queries' first answers, ranked together by score (GAP, micro-AP).

    Only the first answer of a query is a prediction; M, the number of queries with ground truth,
    divides the sum of the precision at each right one. For recognition judge each query's landmark
    ids; for retrieval its photos.

    Returns nan where no query has ground truth.
    Source: the Google Landmarks recognition challenge. Differs: predictions of equal score enter
    together; the challenge's code orders them by query id.
    """
    return _once(prepare_global_average_precision, queries)


def check_precision(precision: float) -> float:
    """Return a precision in (0, 1], or say that 90 is meant as 0.9."""
    if isinstance(precision, (int, float)) and 1 < precision <= 100:
        raise ValueError(
            f"precision must be in (0, 1]; got {precision}. Give {precision / 100:g} for "
            f"{precision}%"
        )
    return check_real(precision, "precision", minimum=0, maximum=1, exclusive_minimum=True)


def prepare_pooled_precision(judged: JudgedQueries, threshold: float = -np.inf) -> Prepared:
    """See pooled_precision."""
    retrieved, right, _ = _sums_at(judged, threshold)
    return lambda counts: _ratio(counts @ right, counts @ retrieved)


def prepare_pooled_recall(judged: JudgedQueries, threshold: float = -np.inf) -> Prepared:
    """See pooled_recall."""
    _, right, positives = _sums_at(judged, threshold)
    return lambda counts: _ratio(counts @ right, counts @ positives)


def prepare_recall_at_precision(judged: JudgedQueries, precision: float = 0.9) -> Prepared:
    """See recall_at_precision."""
    true_positives = prepare_true_positives_at_precision(judged, precision)
    return lambda counts: true_positives(counts) / np.maximum(counts @ judged.n_positives, 1)


def prepare_true_positives_at_precision(judged: JudgedQueries, precision: float = 0.9) -> Prepared:
    """See true_positives_at_precision."""
    check_precision(precision)
    runs = _RightRuns.of(judged)

    def metric(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        values = np.zeros(len(counts))
        for i, row in enumerate(counts):
            right, run_precision = runs.at(row)
            reached = np.flatnonzero(run_precision >= precision)
            values[i] = right[reached[-1]] if len(reached) else 0
        return values

    return metric


def prepare_precision_at_recall(judged: JudgedQueries, recall: float = 0.5) -> Prepared:
    """See precision_at_recall."""
    check_real(recall, "recall", minimum=0, maximum=1)
    several = prepare_precision_at_recalls(judged, [recall])
    return lambda counts: several(counts)[:, 0]


def prepare_precision_at_recalls(judged: JudgedQueries, recalls: Any) -> Prepared:
    """See precision_at_recall: for k recalls at once, (r, q) -> (r, k)."""
    wanted = np.asarray(recalls, dtype=np.float64)
    runs = _RightRuns.of(judged)

    def metric(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        values = np.zeros((len(counts), len(wanted)))
        totals = np.maximum(counts @ judged.n_positives, 1)
        for i, row in enumerate(counts):
            right, run_precision = runs.at(row)
            best = np.maximum.accumulate(run_precision[::-1])[::-1]  # from here on
            values[i] = np.append(best, 0.0)[np.searchsorted(right / totals[i], wanted)]
        return values

    return metric


def prepare_answered_at_precision(judged: JudgedQueries, precision: float = 0.9) -> Prepared:
    """See answered_at_precision."""
    check_precision(precision)
    runs = _RightRuns.of(judged)
    has_truth = judged.n_positives > 0
    queries = np.flatnonzero(judged.n_answers > 0)
    queries = queries[judged.correct[judged.offsets[queries]]]
    # These first answers are right, so their scores are thresholds of runs, which fall.
    run_of = np.searchsorted(-runs.thresholds, -judged.scores[judged.offsets[queries]])

    def metric(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        answered = np.zeros(len(counts))
        for i, row in enumerate(counts):
            reached = np.flatnonzero(runs.at(row)[1] >= precision)
            if len(reached):
                answered[i] = row[queries[run_of <= reached[-1]]].sum()
        return _ratio(answered, counts @ has_truth)

    return metric


def prepare_answered_at_threshold(judged: JudgedQueries, threshold: float) -> Prepared:
    """See answered_at_threshold."""
    if np.isnan(threshold):
        raise ValueError("threshold must be a number; got nan")
    first = judged.offsets[:-1]
    answered = judged.n_answers > 0
    answered[answered] = (judged.correct & (judged.scores >= threshold))[first[answered]]
    has_truth = judged.n_positives > 0
    return lambda counts: _ratio(counts @ answered, counts @ has_truth)


def prepare_global_average_precision(judged: JudgedQueries) -> Prepared:
    """See global_average_precision."""
    answering = np.flatnonzero(judged.n_answers > 0)
    first = judged.offsets[answering]
    order = np.argsort(-judged.scores[first], kind="stable")
    queries, right = answering[order], judged.correct[first][order]
    last = _run_ends(judged.scores[first][order])
    has_truth = judged.n_positives > 0

    def metric(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        predictions = counts[:, queries]
        retrieved = predictions.cumsum(axis=1)[:, last]
        found = (predictions * right).cumsum(axis=1)[:, last]
        area = _ratio(found, retrieved, empty=0.0) * np.diff(found, axis=1, prepend=0)
        return _ratio(area.sum(axis=1), counts @ has_truth)

    return metric


@dataclass(frozen=True, eq=False)
class _RightRuns:
    """The pooled answers cut after each run of equal scores that holds a right answer.

    Between two cuts precision only falls and recall stands still, whatever the counts of the
    queries, so the best of each is always reached at a cut. Run i holds the answers
    starts[i]:starts[i + 1], owned by query_of, and the right ones among them in the same way.
    """

    thresholds: NDArray[np.float64]
    query_of: NDArray[np.intp]
    starts: NDArray[np.intp]
    right_query_of: NDArray[np.intp]
    right_starts: NDArray[np.intp]

    @staticmethod
    def of(judged: JudgedQueries) -> _RightRuns:
        scores, correct, query_of = judged.scores, judged.correct, judged.query_of
        # What scores below the last right answer is never asked for.
        wanted = scores >= scores[correct].min() if correct.any() else np.zeros(len(scores), bool)
        scores, correct, query_of = scores[wanted], correct[wanted], query_of[wanted]
        order = np.argsort(-scores)
        scores, correct, query_of = scores[order], correct[order], query_of[order]
        last = _run_ends(scores)
        right_before = np.cumsum(correct)[last]
        last = last[np.diff(right_before, prepend=0) > 0]
        right = np.flatnonzero(correct)
        starts = np.concatenate([[0], last + 1])[:-1]
        return _RightRuns(
            thresholds=scores[last],
            query_of=query_of[: last[-1] + 1 if len(last) else 0],
            starts=starts.astype(np.intp),
            right_query_of=query_of[right],
            right_starts=np.searchsorted(right, starts),
        )

    def at(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return true positives and precision at each cut, with queries counted so often."""
        if not len(self.starts):
            return np.zeros(0, np.int64), np.zeros(0)
        retrieved = np.add.reduceat(counts[self.query_of], self.starts).cumsum()
        right = np.add.reduceat(counts[self.right_query_of], self.right_starts).cumsum()
        return right, right / np.maximum(retrieved, 1)


def _sums_at(
    judged: JudgedQueries, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    if np.isnan(threshold):
        raise ValueError("threshold must be a number; got nan")
    accepted = judged.scores >= threshold
    edges = judged.offsets
    retrieved = np.diff(np.concatenate([[0], np.cumsum(accepted)])[edges])
    right = np.diff(np.concatenate([[0], np.cumsum(accepted & judged.correct)])[edges])
    return retrieved, right, judged.n_positives


def _run_ends(scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the last place of each run of equal scores."""
    return np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])


def _ratio(
    over: NDArray[Any], under: NDArray[Any], *, empty: float = np.nan
) -> NDArray[np.float64]:
    result = np.full(np.shape(over), empty)
    np.divide(over, under, out=result, where=under > 0)
    return result


def _once(
    prepare: Callable[..., Prepared], queries: Sequence[JudgedQuery], **options: Any
) -> float:
    judged = JudgedQueries.of(queries)
    return float(prepare(judged, **options)(np.ones((1, len(judged)), np.int64))[0])

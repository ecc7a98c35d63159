"""Bootstrap confidence intervals over queries, for every metric through one interface.

A metric is any function of judged queries that returns a number: those of this package, one of
them with options (``functools.partial(recall_at_precision, precision=0.95)``), or your own. The
package's own are not evaluated anew on each resample: they are prepared once and asked with how
often each query counts. ``resampling`` says how queries, scenes and distractor queries are drawn.

Intervals are percentile intervals of the resampled values.
Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13. Differs: the paper
gives no intervals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_real
from delfsearch.evaluation import ranked, unranked
from delfsearch.evaluation.judged import JudgedQueries, JudgedQuery
from delfsearch.evaluation.resampling import Resampler
from delfsearch.evaluation.unranked import Prepared

Metric = Callable[[Sequence[JudgedQuery]], float]


def _mean_of(per_query: Callable[..., NDArray[np.float64]]) -> Callable[..., Prepared]:
    """Prepare the mean of per-query values over the queries that have one."""

    def prepare(judged: JudgedQueries, **options: Any) -> Prepared:
        values = per_query(judged, **options)
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)

        def metric(counts: NDArray[np.int64]) -> NDArray[np.float64]:
            result = np.full(len(counts), np.nan)
            total = counts @ known
            np.divide(counts @ filled, total, out=result, where=total > 0)
            return result

        return metric

    return prepare


_PREPARE: dict[Any, Callable[..., Prepared]] = {
    ranked.mean_average_precision: _mean_of(ranked.average_precisions),
    ranked.mean_average_precision_at: _mean_of(ranked.average_precisions_at),
    ranked.mean_precision_at: _mean_of(ranked.precisions_at),
    ranked.recall_at_rank_one: _mean_of(ranked.first_answers_right),
    unranked.answered_at_precision: unranked.prepare_answered_at_precision,
    unranked.answered_at_threshold: unranked.prepare_answered_at_threshold,
    unranked.global_average_precision: unranked.prepare_global_average_precision,
    unranked.pooled_precision: unranked.prepare_pooled_precision,
    unranked.pooled_recall: unranked.prepare_pooled_recall,
    unranked.precision_at_recall: unranked.prepare_precision_at_recall,
    unranked.recall_at_precision: unranked.prepare_recall_at_precision,
    unranked.true_positives_at_precision: unranked.prepare_true_positives_at_precision,
}


@dataclass(frozen=True, eq=False)
class Interval:
    """A metric's value and its confidence interval.

    value : on the queries as they are. low, high : nan where there are fewer than two scenes to
    draw from, since they then say nothing. n_clusters : the scenes (or queries without one) that
    were drawn. n_undefined : resamples on which the metric is nan, left out of the interval.
    samples : (n_resamples,) float64, the resampled values.
    """

    value: float
    low: float
    high: float
    confidence: float
    n_clusters: int
    n_undefined: int
    samples: NDArray[np.float64] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, eq=False)
class Difference:
    """How much more the first of two systems reaches than the second, on the same queries.

    first, second : the values. difference : first - second; low, high : its interval, nan as in
    Interval. p_value : two-sided, the share of resamples at or beyond zero, doubled, each side
    counted with one more so that it is never 0; nan where low is. share_below_zero : share of the
    resamples in which the second system is ahead. samples : (n_resamples,) float64, differences.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    share_below_zero: float
    n_clusters: int
    n_undefined: int
    samples: NDArray[np.float64] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p_value:.3g}"


@dataclass(frozen=True, eq=False)
class CurveBand:
    """The pooled precision at given recalls, with a confidence interval at each.

    recalls, precision, low, high : (k,) float64. The interval holds at each recall by itself, not
    for the curve as a whole.
    """

    recalls: NDArray[np.float64]
    precision: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    confidence: float
    n_clusters: int


def bootstrap_interval(
    queries: Sequence[JudgedQuery],
    metric: Metric,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    scenes: Sequence[str] | None = None,
    by_scene: bool = True,
    random_state: object = 0,
) -> Interval:
    """Return a metric and its confidence interval over the queries.

    queries : judged queries, distractor queries included; these are drawn among themselves, so
        that every resample has as many of them.
    metric : function of judged queries.
    n_resamples : at least 1. confidence : in (0, 1).
    scenes : q names that replace those of the queries; by_scene=False draws single queries.
    random_state : int, numpy generator or None, as in scikit-learn.
    Raises ValueError where an argument is not as it must be.
    """
    check_confidence(confidence)
    _check_metric(metric)
    judged = JudgedQueries.of(queries)
    resampler = Resampler.of(
        judged,
        scenes=scenes,
        by_scene=by_scene,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    return _interval(metric, judged, resampler, confidence)


def bootstrap_difference(
    first: Sequence[JudgedQuery],
    second: Sequence[JudgedQuery],
    metric: Metric,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    scenes: Sequence[str] | None = None,
    by_scene: bool = True,
    random_state: object = 0,
) -> Difference:
    """Compare two systems on the same queries: every resample draws the same ones for both.

    first, second : the same queries in the same order, judged for one system and for the other.
    The other arguments are those of bootstrap_interval.
    Raises ValueError where the two are not of the same queries.
    """
    check_confidence(confidence)
    _check_metric(metric)
    one, other = JudgedQueries.of(first), JudgedQueries.of(second)
    _refuse_unpaired(one, other)
    resampler = Resampler.of(
        one if one.scenes else other,
        scenes=scenes,
        by_scene=by_scene,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    return paired_difference(
        _interval(metric, one, resampler, confidence),
        _interval(metric, other, resampler, confidence),
    )


def paired_difference(first: Interval, second: Interval) -> Difference:
    """Compare two systems by their intervals, which costs nothing where both are known.

    first, second : what bootstrap_interval returned on the same queries with the same arguments,
        so that sample i of both is of the same resample. The metrics may differ, such as a
        threshold of each system's own.
    Returns what bootstrap_difference does. Raises ValueError where their numbers of resamples or
    scenes, or their confidences, show that they do not belong together.
    """
    for name in ("confidence", "n_clusters"):
        if getattr(first, name) != getattr(second, name):
            raise ValueError(
                f"first and second must be intervals on the same queries with the same {name}; "
                f"got {getattr(first, name)} and {getattr(second, name)}"
            )
    if len(first.samples) != len(second.samples):
        raise ValueError(
            "first and second must be intervals of the same n_resamples; got "
            f"{len(first.samples)} and {len(second.samples)}"
        )
    samples = first.samples - second.samples
    low, high = _percentiles(samples, first.confidence, first.n_clusters)
    known = samples[~np.isnan(samples)]
    below, above = int((known <= 0).sum()), int((known >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1))
    return Difference(
        first=first.value,
        second=second.value,
        difference=first.value - second.value,
        low=float(low),
        high=float(high),
        confidence=first.confidence,
        p_value=float("nan") if np.isnan(low) else p_value,
        share_below_zero=float((known < 0).mean()) if len(known) else float("nan"),
        n_clusters=first.n_clusters,
        n_undefined=len(samples) - len(known),
        samples=samples,
    )


def bootstrap_curve(
    queries: Sequence[JudgedQuery],
    recalls: Any = None,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    scenes: Sequence[str] | None = None,
    by_scene: bool = True,
    random_state: object = 0,
) -> CurveBand:
    """Return the precision-recall curve of all queries together with an interval at each recall.

    recalls : (k,) numbers in [0, 1]; None takes 0, 0.01, ..., 1. The precision at a recall is that
        of precision_at_recall (0 where it is not reached).
    The other arguments are those of bootstrap_interval.
    """
    check_confidence(confidence)
    wanted = np.linspace(0, 1, 101) if recalls is None else np.asarray(recalls, dtype=np.float64)
    if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError("recalls must be a 1-D array of numbers in [0, 1]")
    judged = JudgedQueries.of(queries)
    resampler = Resampler.of(
        judged,
        scenes=scenes,
        by_scene=by_scene,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    prepared = unranked.prepare_precision_at_recalls(judged, wanted)
    precision = prepared(np.ones((1, len(judged)), np.int64))[0]
    samples = _resampled(prepared, resampler)
    low, high = _percentiles(samples, confidence, resampler.n_clusters)
    return CurveBand(wanted, precision, low, high, confidence, resampler.n_clusters)


def check_confidence(confidence: float) -> float:
    """Return a confidence within (0, 1), or say that 95 is meant as 0.95."""
    check_real(confidence, "confidence")
    if not 0 < confidence < 1:
        remedy = f". Give {confidence / 100:g} for {confidence}%" if 1 < confidence < 100 else ""
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}{remedy}")
    return confidence


def _check_metric(metric: Any) -> None:
    if not callable(metric):
        raise TypeError(
            "metric must be a function of judged queries, such as evaluation.recall_at_precision; "
            f"got {metric!r}"
        )


def _interval(
    metric: Metric, judged: JudgedQueries, resampler: Resampler, confidence: float
) -> Interval:
    samples = _resampled(_prepared(metric, judged), resampler)
    low, high = _percentiles(samples, confidence, resampler.n_clusters)
    return Interval(
        value=float(metric(judged)),
        low=float(low),
        high=float(high),
        confidence=confidence,
        n_clusters=resampler.n_clusters,
        n_undefined=int(np.isnan(samples).sum()),
        samples=samples,
    )


def _prepared(metric: Metric, judged: JudgedQueries) -> Prepared:
    function: Any = metric
    options: dict[str, Any] = {}
    if isinstance(function, functools.partial) and not function.args:
        function, options = function.func, function.keywords
    try:
        prepare = _PREPARE.get(function)
    except TypeError:  # a callable that cannot be hashed is none of ours
        prepare = None
    if prepare is not None:
        return prepare(judged, **options)

    def evaluate(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        everyone = np.arange(len(judged))
        return np.array([float(metric(judged.take(np.repeat(everyone, row)))) for row in counts])

    return evaluate


def _resampled(prepared: Prepared, resampler: Resampler) -> NDArray[np.float64]:
    return np.concatenate([prepared(counts) for counts in resampler.blocks()])


def _percentiles(samples: NDArray[np.float64], confidence: float, n_clusters: int) -> Any:
    tail = (1 - confidence) / 2
    if n_clusters < 2 or np.isnan(samples).all():
        return np.full((2, *samples.shape[1:]), np.nan)
    return np.nanquantile(samples, [tail, 1 - tail], axis=0)


def _refuse_unpaired(one: JudgedQueries, other: JudgedQueries) -> None:
    if len(one) != len(other):
        raise ValueError(
            f"first and second must be judged on the same queries; got {len(one)} and {len(other)}"
        )
    for name in ("ids", "scenes"):
        names = getattr(one, name), getattr(other, name)
        if all(names) and names[0] != names[1]:
            row = next(i for i, (a, b) in enumerate(zip(*names)) if a != b)
            raise ValueError(
                "first and second must be judged on the same queries in the same order; their "
                f"{name} differ at query {row}: {names[0][row]!r} and {names[1][row]!r}"
            )
    unequal = np.flatnonzero(one.n_positives != other.n_positives)
    if len(unequal):
        row = unequal[0]
        raise ValueError(
            "first and second must be judged with the same ground truth; query "
            f"{row} has {one.n_positives[row]} and {other.n_positives[row]} positives"
        )

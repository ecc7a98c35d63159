"""Figures of one system with intervals, its curves, and its comparison with another."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from delfsearch.evaluation.bootstrap import (
    CurveBand,
    Difference,
    Interval,
    bootstrap_curve,
    bootstrap_interval,
    paired_difference,
)
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.ranked import mean_average_precision, recall_at_rank_one
from delfsearch.evaluation.unranked import (
    answered_at_precision,
    answered_at_threshold,
    pooled_curve,
    recall_at_precision,
    threshold_at_precision,
)

PRECISION = 0.9
R1, MAP, RECALL, ANSWERED = "R@1", "mAP", "R@90%", "answered@90%"
MEASURES = (R1, MAP, RECALL, ANSWERED)


class QueryGroup(Protocol):
    """What is needed of a Group."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def rows(self) -> Sequence[int]:
        """Its queries."""
        ...

    @property
    def distractor_rows(self) -> Sequence[int]:
        """The distractor queries that go with them."""
        ...


@dataclass(frozen=True)
class GroupFigures:
    """n_queries : with ground truth. by_measure : interval of each of MEASURES."""

    n_queries: int
    by_measure: dict[str, Interval]


@dataclass(frozen=True)
class SystemCurves:
    """Precision over recall of the headline with its band, and the threshold of 90% precision."""

    band: CurveBand
    threshold: float


@dataclass(frozen=True)
class Comparison:
    """How much more a system reaches than another on a group of queries, paired by query.

    title, beside : of the system and the other one. group : its name. by_measure : differences.
    """

    title: str
    beside: str
    group: str
    by_measure: dict[str, Difference]


def measure(
    judged: JudgedQueries, groups: Sequence[QueryGroup], *, n_resamples: int
) -> dict[str, GroupFigures]:
    """Return the figures of each group; the first one, the headline, sets the one threshold.

    R@1 and mAP are of the group's queries alone. R@90% pools them with all distractor queries.
    answered@90% of the first group is that of answered_at_precision; a part of it is asked at the
    same threshold, since a user has one. n_resamples : of the bootstrap by scene.
    """
    interval = functools.partial(bootstrap_interval, n_resamples=n_resamples)
    first = _pooled(judged, groups[0])
    threshold = threshold_at_precision(pooled_curve(first), PRECISION)
    figures = {}
    for i, group in enumerate(groups):
        own, pooled = judged.take(group.rows), _pooled(judged, group)
        if i == 0:
            answered = interval(
                pooled, functools.partial(answered_at_precision, precision=PRECISION)
            )
        else:
            answered = interval(own, functools.partial(answered_at_threshold, threshold=threshold))
        figures[group.name] = GroupFigures(
            len(own),
            {
                R1: interval(own, recall_at_rank_one),
                MAP: interval(own, mean_average_precision),
                RECALL: interval(
                    pooled, functools.partial(recall_at_precision, precision=PRECISION)
                ),
                ANSWERED: answered,
            },
        )
    return figures


def curves(judged: JudgedQueries, group: QueryGroup, *, n_resamples: int) -> SystemCurves:
    """Return the precision-recall curve of a group with all distractor queries."""
    pooled = _pooled(judged, group)
    band = bootstrap_curve(pooled, np.linspace(0, 1, 101), n_resamples=n_resamples)
    return SystemCurves(band, threshold_at_precision(pooled_curve(pooled), PRECISION))


def compare(
    figures: Mapping[str, Mapping[str, GroupFigures]], beside: Sequence[str], groups: Sequence[str]
) -> tuple[Comparison, ...]:
    """Compare systems with some of them on each group, the same queries resampled for both.

    figures : what measure returned, by title of the system and name of the group, all with the
    same n_resamples. beside : titles that the others are compared with. groups : names.
    Thresholds are each system's own, as in its figures.
    """
    return tuple(
        Comparison(
            title,
            other,
            group,
            {
                name: paired_difference(
                    own[group].by_measure[name], figures[other][group].by_measure[name]
                )
                for name in MEASURES
            },
        )
        for group in groups
        for other in beside
        for title, own in figures.items()
        if title != other
    )


def _pooled(judged: JudgedQueries, group: QueryGroup) -> JudgedQueries:
    return judged.take([*group.rows, *group.distractor_rows])

"""The Easy, Medium and Hard setups of the revisited Oxford and Paris benchmarks.

Each query has easy, hard and junk photos. A setup says which of them are positives and which are
ignored:

    Easy    positives easy           ignored junk and hard
    Medium  positives easy and hard  ignored junk
    Hard    positives hard           ignored junk and easy

A query without positives in a setup is left out of that setup's means.
Source: Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking".
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from delfsearch._validation import check_choice
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.judging import Answers, judge_all
from delfsearch.evaluation.ranked import mean_average_precision, mean_precision_at

SETUPS = ("easy", "medium", "hard")


class RevisitedQuery(Protocol):
    """What judge_revisited needs to know of a query; the Query of a dataset is one."""

    @property
    def id(self) -> Hashable:
        """Name of the query, a key of answers."""

    @property
    def easy(self) -> Collection[Hashable]:
        """Ids of photos that show the query's building clearly."""

    @property
    def hard(self) -> Collection[Hashable]:
        """Ids of photos that show it under difficult conditions."""

    @property
    def junk(self) -> Collection[Hashable]:
        """Ids ignored in every setup."""

    @property
    def scene(self) -> str:
        """Queries of one scene are resampled together."""


@dataclass(frozen=True)
class RevisitedScores:
    """Figures of one setup: mAP, mP@k by k, and the number of queries that have positives in it."""

    mean_average_precision: float
    mean_precision_at: Mapping[int, float]
    n_queries: int


@dataclass(frozen=True)
class _Truth:
    id: Hashable
    positives: frozenset[Hashable]
    junk: frozenset[Hashable]
    scene: str = field(default="")


def judge_revisited(
    answers: Mapping[Any, Answers],
    queries: Iterable[RevisitedQuery],
    setup: str,
    *,
    exclude_self: bool = True,
    ties: str = "wrong_first",
) -> JudgedQueries:
    """Compare a system's answers with the ground truth of one setup.

    answers, exclude_self, ties : as in judge_all.
    queries : objects with id, easy, hard, junk and scene.
    setup : "easy", "medium" or "hard".
    Raises ValueError as judge_all does, and for an id in two of easy, hard and junk.
    """
    check_choice(setup, "setup", SETUPS)
    truths = []
    for query in queries:
        easy, hard, junk = frozenset(query.easy), frozenset(query.hard), frozenset(query.junk)
        if both := (easy & hard) | (easy & junk) | (hard & junk):
            raise ValueError(
                f"query {query.id!r} must have a photo in one of easy, hard and junk only; "
                f"{next(iter(both))!r} is in two"
            )
        positives, ignored = {
            "easy": (easy, junk | hard),
            "medium": (easy | hard, junk),
            "hard": (hard, junk | easy),
        }[setup]
        truths.append(_Truth(query.id, positives, ignored, query.scene))
    return judge_all(answers, truths, exclude_self=exclude_self, ties=ties)


def revisited_scores(
    answers: Mapping[Any, Answers],
    queries: Sequence[RevisitedQuery],
    *,
    ks: Sequence[int] = (1, 5, 10),
    exclude_self: bool = True,
    ties: str = "wrong_first",
) -> dict[str, RevisitedScores]:
    """Return mAP and mP@k of each setup, by its name.

    answers, queries, exclude_self, ties : as in judge_revisited. ks : ranks of mP@k.
    """
    result = {}
    for setup in SETUPS:
        judged = judge_revisited(answers, queries, setup, exclude_self=exclude_self, ties=ties)
        result[setup] = RevisitedScores(
            mean_average_precision=mean_average_precision(judged),
            mean_precision_at={k: mean_precision_at(judged, k) for k in ks},
            n_queries=int(np.count_nonzero(judged.n_positives)),
        )
    return result

"""Comparing answers with ground truth: which are right, which are junk, which are the query itself.

Three doors to the same result: ``judge`` for one query, ``judge_all`` for the answers of a system
on a dataset by id, ``judge_arrays`` (in ``numbered``) for answers in arrays.

Equal scores. Metrics that pool all queries let equal scores enter together, whatever their order.
Those that read a ranking (average precision, R@1, ...) need one: ``ties`` says which.
"wrong_first", the default, ranks wrong answers before right ones of the same score: it flatters no
system, and the order in which tied answers came changes nothing. (Inlier counts tie often, and the
usual tie-break, the lower id, favours the right answer wherever a dataset lists its distractors
last.) "given" keeps the order that the answers came in, as published evaluations of ranked lists
do; "right_first" is the other bound.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice
from delfsearch.evaluation.judged import JudgedQueries, JudgedQuery

TIES = ("wrong_first", "given", "right_first")
Answers = Sequence[tuple[Hashable, float]]


class QueryLike(Protocol):
    """What judge_all needs to know of a query; the Query of a dataset is one."""

    @property
    def id(self) -> Hashable:
        """Name of the query, a key of answers."""

    @property
    def positives(self) -> Collection[Hashable]:
        """Ids of the right answers."""

    @property
    def junk(self) -> Collection[Hashable]:
        """Ids ignored wherever they rank."""

    @property
    def scene(self) -> str:
        """Queries of one scene are resampled together."""


def judge(
    answers: Answers,
    positives: Collection[Hashable],
    junk: Collection[Hashable] = (),
    *,
    query_id: Hashable = None,
    own_id: Hashable = None,
    scene: str = "",
    exclude_self: bool = True,
    ties: str = "wrong_first",
) -> JudgedQuery:
    """Compare one query's answers with its ground truth.

    answers : (id, score) pairs in any order, higher is surer; every id once.
    positives, junk : ids; an id in junk is ignored wherever it ranks. No positives: a distractor
        query, whose every answer is wrong.
    query_id : the query's name. own_id : its photo's id in the database, where that is not the
        name. If it is among the answers, it is left out of them and of positives, and
        self_excluded of the result says so.
    exclude_self : False keeps it (the published arithmetic of Oxford5k and Paris6k counts the
        query's own photo, which is in its ground truth).
    scene : carried to the result. ties : see the module.
    Raises ValueError for a duplicated answer, a score that is not a finite number, or an id both
    in positives and junk.
    """
    check_choice(ties, "ties", TIES)
    whose = "" if query_id is None else f" of query {query_id!r}"
    relevant, ignored = _id_set(positives, "positives" + whose), _id_set(junk, "junk" + whose)
    if both := relevant & ignored:
        raise ValueError(
            f"ids{whose} must not be both positive and junk; got {next(iter(both))!r} "
            f"({len(both)} in all)"
        )
    try:
        ids = [identity for identity, _ in answers]
    except (TypeError, ValueError):
        raise ValueError(
            f"answers{whose} must be (id, score) pairs; got {_shortened(answers)}"
        ) from None
    if len(set(ids)) != len(ids):
        twice = next(identity for identity in ids if ids.count(identity) > 1)
        raise ValueError(f"answers{whose} must hold every id once; got {twice!r} twice or more")
    scores = _scores([score for _, score in answers], whose)
    own_id = query_id if own_id is None else own_id
    self_excluded = exclude_self and own_id is not None and own_id in ids
    if exclude_self and own_id is not None:
        relevant.discard(own_id)
        ignored.add(own_id)
    kept = np.array([identity not in ignored for identity in ids], dtype=bool)
    correct = np.array([identity in relevant for identity in ids], dtype=bool)[kept]
    scores = scores[kept]
    order = np.lexsort((tie_key(correct, ties), -scores))
    return JudgedQuery(
        scores=scores[order],
        correct=correct[order],
        n_positives=len(relevant),
        id=query_id,
        scene=scene,
        self_excluded=self_excluded,
    )


def judge_all(
    answers: Mapping[Any, Answers],
    queries: Iterable[QueryLike],
    *,
    exclude_self: bool = True,
    ties: str = "wrong_first",
) -> JudgedQueries:
    """Compare a system's answers with the ground truth of a dataset's queries.

    answers : (id, score) pairs by query id; an empty list where the system says "no match".
        Entries for other queries are not looked at.
    queries : objects with id, positives, junk and scene, distractor queries among them. Where one
        also has ``photo``, the id of its photo in the database, and that is in its junk, the
        result says that the query's own photo was left out.
    exclude_self, ties : as in judge.
    Returns the queries in the given order.
    Raises ValueError as judge does, for a query without entry in answers, and for one given twice.
    """
    judged: list[JudgedQuery] = []
    seen: set[Hashable] = set()
    for query in queries:
        if query.id in seen:
            raise ValueError(f"queries must hold every id once; got {query.id!r} twice")
        seen.add(query.id)
        if query.id not in answers:
            raise ValueError(
                f"answers must have an entry for every query; {query.id!r} has none. Give an "
                "empty list where there is no answer"
            )
        judged.append(
            judge(
                answers[query.id],
                query.positives,
                query.junk,
                query_id=query.id,
                own_id=own_photo(query),
                scene=query.scene,
                exclude_self=exclude_self,
                ties=ties,
            )
        )
    return JudgedQueries.of(judged)


def own_photo(query: Any) -> Hashable:
    """Return the database id of a query's own photo, which is not to answer it.

    That is its id, unless its ``photo`` is junk. (In Oxford5k a query is named after a box in a
    photo, and the photo is one of its positives: it stays.)
    """
    photo: Hashable = getattr(query, "photo", None)
    return photo if photo in query.junk else query.id


def tie_key(correct: NDArray[np.bool_], ties: str) -> NDArray[np.bool_]:
    """Return what orders answers of equal score, lower first."""
    if ties == "given":
        return np.zeros_like(correct)
    return correct if ties == "wrong_first" else ~correct


def _shortened(answers: Any) -> str:
    text = repr(answers)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _id_set(ids: Collection[Hashable], name: str) -> set[Hashable]:
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"{name} must be a collection of ids; got the one string {ids!r}")
    return set(ids)


def _scores(values: list[float], whose: str) -> NDArray[np.float64]:
    scores = np.asarray(values if values else np.zeros(0))
    if scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise ValueError(f"scores{whose} must be numbers; got dtype {scores.dtype}")
    if not np.isfinite(scores).all():
        bad = scores[~np.isfinite(scores)][0]
        raise ValueError(
            f"scores{whose} must be finite; got {'NaN' if np.isnan(bad) else bad}. Leave such "
            "answers out"
        )
    return scores.astype(np.float64, copy=False)

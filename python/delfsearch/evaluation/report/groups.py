"""Parts of a folder that have figures of their own: the headline, each subset, panoramas."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.evaluation.judging import judge_all
from delfsearch.evaluation.report.measures import GroupFigures, measure
from delfsearch.evaluation.running.answer_log import Answers

HEADLINE = "headline"
NOT_HEADLINE = "not headline"
WITHOUT_TRAINED = "without photos trained on"


@dataclass(frozen=True)
class Group:
    """Queries that are measured together, with all distractor queries.

    name : in tables. rows : numbers of its queries among the set's. distractor_rows : of those
    that have no match. about : a word on what it is.
    """

    name: str
    rows: tuple[int, ...] = field(repr=False)
    distractor_rows: tuple[int, ...] = field(repr=False)
    about: str = ""


def groups_of(dataset: Dataset, together: Sequence[Sequence[str]] = ()) -> tuple[Group, ...]:
    """Return the headline, its subsets, some of them together, and what is not in the headline.

    Raises ValueError where `together` names a subset that no headline query is of.
    """
    n = len(dataset.queries)
    distractors = tuple(range(n, n + len(dataset.distractor_queries)))
    headline_ids = {query.id for query in dataset.headline_queries}
    headline = [i for i, query in enumerate(dataset.queries) if query.id in headline_ids]
    subsets: dict[str, list[int]] = {}
    for i in headline:
        subsets.setdefault(dataset.queries[i].subset, []).append(i)
    groups = [Group(HEADLINE, tuple(headline), distractors)]
    named = {name: rows for name, rows in sorted(subsets.items()) if name}
    for names in together:
        if unknown := [name for name in names if name not in named]:
            raise ValueError(
                f"together must name subsets of headline queries ({', '.join(named)}); "
                f"got {unknown[0]!r}"
            )
        rows = sorted(row for name in names for row in named[name])
        groups.append(Group(" + ".join(names), tuple(rows), distractors))
    if len(named) > 1:
        groups += [Group(name, tuple(rows), distractors) for name, rows in named.items()]
    rest = tuple(i for i in range(n) if i not in set(headline))
    if rest:
        kinds = sorted({dataset.queries[i].kind for i in rest} - {""})
        groups.append(Group(NOT_HEADLINE, rest, distractors, ", ".join(kinds)))
    return tuple(groups)


@dataclass(frozen=True)
class Reduced:
    """The headline counted again with photos struck from the answers; nothing is asked again.

    dataset : the queries that still count. gone : photos struck, by query id. group : the headline.
    """

    dataset: Dataset
    gone: Mapping[str, frozenset[str]] = field(repr=False)
    group: Group

    def figures(self, answers: Answers, *, n_resamples: int) -> dict[str, GroupFigures]:
        """Return the figures of the headline on the smaller set."""
        kept = {
            query.id: [a for a in answers[query.id] if a[0] not in self.gone[query.id]]
            for query in self.dataset.all_queries
        }
        judged = judge_all(kept, self.dataset.all_queries)
        return measure(judged, (self.group,), n_resamples=n_resamples)


def without_subsets(folder: PhotoFolder, dataset: Dataset, subsets: Sequence[str]) -> Reduced:
    """Return the set without the database photos and distractor queries of some subsets.

    subsets : names, or patterns such as scene15_*.
    Raises ValueError for an unknown subset, and where a query or a right answer is of one.
    """
    known = set(folder.subsets.values()) - {""}
    named = {pattern: fnmatch.filter(known, pattern) for pattern in subsets}
    if unknown := [pattern for pattern, names in named.items() if not names]:
        raise ValueError(
            f"without must name subsets of the folder ({', '.join(sorted(known))}); "
            f"got {unknown[0]!r}"
        )
    left = {name for names in named.values() for name in names}
    gone = frozenset(photo for photo in dataset.database if folder.subsets.get(photo) in left)
    for query in dataset.queries:
        if query.subset in left or query.positives & gone:
            raise ValueError(f"without must name subsets that no query asks for; {query.id!r} does")
    smaller = replace(
        dataset,
        distractor_queries=tuple(
            replace(query, junk=query.junk - gone)
            for query in dataset.distractor_queries
            if folder.subsets.get(query.id) not in left
        ),
    )
    n_queries_gone = len(dataset.distractor_queries) - len(smaller.distractor_queries)
    return Reduced(
        smaller,
        dict.fromkeys((query.id for query in smaller.all_queries), gone),
        _headline(
            smaller,
            f"without {', '.join(subsets)}",
            f"{len(gone)} database photos and {n_queries_gone} distractor queries fewer",
        ),
    )


def without_trained(dataset: Dataset, trained: Mapping[str, frozenset[str]]) -> Reduced:
    """Return the set without what some weights were trained on, the same for every system.

    trained : database photos to strike from the answers of each query, by its id: those that the
    weights which answer it were trained on.
    """
    counts = sorted(len(trained[query.id]) for query in dataset.all_queries)
    shown = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return Reduced(
        dataset,
        trained,
        _headline(
            dataset,
            WITHOUT_TRAINED,
            f"Each query without the {shown} database photos (of {len(dataset.database)}) that the "
            "weights which answer it were trained on, for every system alike",
        ),
    )


def _headline(dataset: Dataset, what: str, about: str) -> Group:
    n = len(dataset.queries)
    return replace(
        groups_of(dataset)[0],
        name=f"{HEADLINE}, {what}",
        distractor_rows=tuple(range(n, n + len(dataset.distractor_queries))),
        about=f"{about}; struck from the answers, not asked again",
    )

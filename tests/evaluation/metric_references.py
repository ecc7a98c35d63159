"""Slow, obvious code that the metrics must agree with, and made-up queries to compare on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from delfsearch.evaluation.metrics import JudgedQuery, judge


def spread(queries):
    """(score, right, query number) of every answer."""
    return [
        (float(score), bool(right), number)
        for number, query in enumerate(queries)
        for score, right in zip(query.scores, query.correct)
    ]


def accepted(queries, threshold):
    """Equations (2) and (3) at one threshold: retrieved and true positives of all queries."""
    answers = [answer for answer in spread(queries) if answer[0] >= threshold]
    return len(answers), sum(right for _, right, _ in answers)


def thresholds(queries):
    return sorted({score for score, _, _ in spread(queries)}, reverse=True)


def all_positives(queries):
    return sum(query.n_positives for query in queries)


def true_positives_at_precision(queries, precision):
    best = 0
    for threshold in thresholds(queries):
        retrieved, right = accepted(queries, threshold)
        if right / retrieved >= precision:
            best = max(best, right)
    return best


def recall_at_precision(queries, precision):
    total = all_positives(queries)
    return true_positives_at_precision(queries, precision) / total if total else 0.0


def precision_at_recall(queries, recall):
    best, total = 0.0, all_positives(queries)
    for threshold in thresholds(queries):
        retrieved, right = accepted(queries, threshold)
        if total and right / total >= recall:
            best = max(best, right / retrieved)
    return best


def answered_at_precision(queries, precision):
    lowest = float("inf")
    for threshold in thresholds(queries):
        retrieved, right = accepted(queries, threshold)
        if right / retrieved >= precision:
            lowest = min(lowest, threshold)
    known = [query for query in queries if query.n_positives]
    good = [q for q in known if len(q.scores) and q.correct[0] and q.scores[0] >= lowest]
    return len(good) / len(known) if known else float("nan")


def global_average_precision(queries):
    known = sum(query.n_positives > 0 for query in queries)
    firsts = [(q.scores[0], bool(q.correct[0])) for q in queries if len(q.scores)]
    total = 0.0
    for score, right in firsts:
        if right:
            together = [other for other in firsts if other[0] >= score]
            total += sum(r for _, r in together) / len(together)
    return total / known if known else float("nan")


def oxford_average_precision(ranked, positives, junk):
    """Walk down a ranked list of ids as the Oxford protocol says: area under trapezoids."""
    old_recall, old_precision, area = 0.0, 1.0, 0.0
    found = place = 0
    for identity in ranked:
        if identity in junk:
            continue
        found += identity in positives
        place += 1
        recall, precision = found / len(positives), found / place
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def places_without_junk(ranked, positives, junk):
    """Ranks, from 0, of the positives once junk is gone."""
    left = [identity for identity in ranked if identity not in junk]
    return [place for place, identity in enumerate(left) if identity in positives]


def revisited_average_precision(ranked, positives, junk):
    """The published arithmetic: ranks lowered by the junk before them, then trapezoids."""
    total = 0.0
    for number, place in enumerate(places_without_junk(ranked, positives, junk)):
        before = 1.0 if place == 0 else number / place
        total += (before + (number + 1) / (place + 1)) / (2 * len(positives))
    return total


def revisited_precision_at(ranked, positives, junk, k):
    """The published mP@k of one query, for a ranking of the whole database."""
    ranks = [place + 1 for place in places_without_junk(ranked, positives, junk)]
    depth = min(max(ranks), k)
    return sum(rank <= depth for rank in ranks) / depth


def average_precision_at(ranked, positives, k):
    """Google Landmarks retrieval, one query."""
    found, total = 0, 0.0
    for rank, identity in enumerate(ranked[:k], start=1):
        if identity in positives:
            found += 1
            total += found / rank
    return total / min(len(positives), k)


@dataclass(frozen=True)
class Truth:
    """The least that judge_all and the revisited setups ask of a query."""

    id: str
    positives: frozenset = frozenset()
    junk: frozenset = frozenset()
    easy: frozenset = frozenset()
    hard: frozenset = frozenset()
    scene: str = ""
    location: tuple[float, float] | None = None


# A query as drawn by Hypothesis: (score, right) of its answers, many of them tied, and how many
# positives are not among them.
specs = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=8),
        st.integers(0, 3),
    ),
    max_size=6,
)


def build(spec, ties="wrong_first") -> list[JudgedQuery]:
    queries = []
    for answers, missing in spec:
        rows = [(i, float(score)) for i, (score, _) in enumerate(answers)]
        positives = {i for i, (_, right) in enumerate(answers) if right}
        positives |= {f"missing{i}" for i in range(missing)}
        queries.append(judge(rows, positives, ties=ties))
    return queries


def random_queries(seed, n, *, n_answers=12, distractors=0.3, scenes=None, levels=9):
    """Judged queries with tied scores; right answers score higher on average."""
    rng = np.random.default_rng(seed)
    queries = []
    for number in range(n):
        right = rng.random(n_answers) < (0.0 if rng.random() < distractors else 0.4)
        scores = rng.integers(0, levels, n_answers) + 3.0 * right
        found = int(right.sum())
        queries.append(
            judge(
                list(zip(range(n_answers), scores.tolist())),
                set(np.flatnonzero(right).tolist())
                | ({f"m{i}" for i in range(int(rng.integers(0, 3)))} if found else set()),
                query_id=f"q{number}",
                scene="" if scenes is None else f"s{rng.integers(scenes)}",
            )
        )
    return queries

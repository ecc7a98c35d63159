"""Easy, Medium and Hard, written out by hand and beside the published arithmetic."""

from __future__ import annotations

import math

import metric_references as slow
import numpy as np
import pytest
from metric_references import Truth

from delfsearch.evaluation import metrics

# The ranking of the whole database for the first query:
#   rank      1  2  3  4  5  6  7  8
#   photo     h1 e1 x  j  e2 y  h2 z      easy e1 e2, hard h1 h2, junk j
# Easy:   e1 e2 of  e1 x e2 y z  (h1, j, h2 gone): ranks 1 and 3
#         AP = (1 + 1)/4 + (1/2 + 2/3)/4
# Medium: h1 e1 e2 h2 of  h1 e1 x e2 y h2 z: ranks 1 2 4 6
#         AP = (1 + 1)/8 + (1/1 + 2/2)/8 + (2/3 + 3/4)/8 + (3/5 + 4/6)/8
# Hard:   h1 h2 of  h1 x y h2 z  (e1, j, e2 gone): ranks 1 and 4
#         AP = (1 + 1)/4 + (1/3 + 2/4)/4
# The second query has only an easy photo, at rank 2 of  h1 e1: no figure under Hard.
RANKED = ["h1", "e1", "x", "j", "e2", "y", "h2", "z"]
QUERIES = [
    Truth("q", easy=frozenset({"e1", "e2"}), hard=frozenset({"h1", "h2"}), junk=frozenset("j")),
    Truth("p", easy=frozenset({"e1"})),
]
ANSWERS = {name: [(photo, -float(i)) for i, photo in enumerate(RANKED)] for name in "qp"}


def test_by_hand():
    scores = metrics.revisited_scores(ANSWERS, QUERIES)
    easy = (1 + 1) / 4 + (1 / 2 + 2 / 3) / 4
    medium = (1 + 1) / 8 + (1 + 1) / 8 + (2 / 3 + 3 / 4) / 8 + (3 / 5 + 4 / 6) / 8
    hard = (1 + 1) / 4 + (1 / 3 + 2 / 4) / 4
    second = (0 + 1 / 2) / 2  # rank 2 of one positive
    for setup, expected in (
        ("easy", (easy + second) / 2),
        ("medium", (medium + second) / 2),
        ("hard", hard),
    ):
        assert scores[setup].mean_average_precision == pytest.approx(expected, abs=1e-15)
    assert [scores[setup].n_queries for setup in scores] == [2, 2, 1]
    # mP@k, no deeper than the last positive. Easy q: 1/1, 2/3, 2/3; p: 0/1, 1/2, 1/2.
    assert dict(scores["easy"].mean_precision_at) == pytest.approx(
        {1: 1 / 2, 5: (2 / 3 + 1 / 2) / 2, 10: (2 / 3 + 1 / 2) / 2}, abs=1e-15
    )
    # Medium q: 1/1, 3/5, 4/6. Hard q: 1/1, 2/4, 2/4.
    assert dict(scores["medium"].mean_precision_at) == pytest.approx(
        {1: 1 / 2, 5: (3 / 5 + 1 / 2) / 2, 10: (4 / 6 + 1 / 2) / 2}, abs=1e-15
    )
    assert dict(scores["hard"].mean_precision_at) == pytest.approx({1: 1, 5: 1 / 2, 10: 1 / 2})


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_the_published_arithmetic(seed):
    rng = np.random.default_rng(seed)
    queries, answers = [], {}
    for number in range(6):
        kinds = rng.choice(4, 40, p=[0.1, 0.1, 0.1, 0.7])
        kinds[:2] *= rng.integers(0, 2)  # now and then no easy or hard photo at all
        of = [frozenset(np.flatnonzero(kinds == kind).tolist()) for kind in range(3)]
        queries.append(Truth(f"q{number}", easy=of[0], hard=of[1], junk=of[2]))
        ranked = rng.permutation(40).tolist()
        answers[f"q{number}"] = [(photo, -float(i)) for i, photo in enumerate(ranked)]
    scores = metrics.revisited_scores(answers, queries)
    for setup, truth in (
        ("easy", lambda q: (q.easy, q.junk | q.hard)),
        ("medium", lambda q: (q.easy | q.hard, q.junk)),
        ("hard", lambda q: (q.hard, q.junk | q.easy)),
    ):
        cases = [([i for i, _ in answers[q.id]], *truth(q)) for q in queries]
        cases = [case for case in cases if case[1]]
        expected = np.mean([slow.revisited_average_precision(*case) for case in cases])
        assert abs(scores[setup].mean_average_precision - expected) < 1e-12
        assert scores[setup].n_queries == len(cases)
        for k in (1, 5, 10):
            expected = np.mean([slow.revisited_precision_at(*case, k) for case in cases])
            assert abs(scores[setup].mean_precision_at[k] - expected) < 1e-12


def test_no_positives_in_any_query():
    scores = metrics.revisited_scores({"q": [("x", 1.0)]}, [Truth("q")])
    assert math.isnan(scores["hard"].mean_average_precision) and scores["hard"].n_queries == 0


def test_a_photo_in_two_lists_is_refused():
    query = Truth("q", easy=frozenset("a"), hard=frozenset("a"))
    with pytest.raises(
        ValueError, match="query 'q' must have a photo in one of easy, hard and junk"
    ):
        metrics.judge_revisited({"q": []}, [query], "medium")
    with pytest.raises(ValueError, match="setup must be one of 'easy', 'medium', 'hard'; got 'E'"):
        metrics.judge_revisited({"q": []}, [], "E")


def test_scenes_and_own_photos_come_along():
    query = Truth("q", easy=frozenset({"a"}), scene="tower")
    judged = metrics.judge_revisited({"q": [("q", 2.0), ("a", 1.0)]}, [query], "easy")
    assert judged.scenes == ("tower",) and judged.self_excluded_ids == ("q",)

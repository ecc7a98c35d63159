"""Rankings of single queries: by hand, beside the published arithmetic, and as properties."""

from __future__ import annotations

import math

import metric_references as slow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import build, random_queries, specs

from delfsearch.evaluation import metrics
from delfsearch.evaluation.metrics import judge

# A ranking of a database of numbered photos, which of them are positives and which junk.
rankings = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.permutations(range(n)),
        st.sets(st.integers(0, n - 1), min_size=1),
        st.sets(st.integers(0, n - 1)),
    )
)


def judged(ranked, positives, junk=()):
    return judge(
        [(identity, -float(place)) for place, identity in enumerate(ranked)], positives, junk
    )


def test_average_precision_by_hand():
    # Ranks 2 and 4 of three positives: (0/1 + 1/2) / 6 + (1/3 + 2/4) / 6.
    query = judged(["x", "a", "y", "b"], {"a", "b", "c"})
    expected = (0 + 1 / 2) / 6 + (1 / 3 + 2 / 4) / 6
    assert metrics.average_precision(query) == pytest.approx(expected, abs=1e-15)


def test_mean_leaves_out_queries_without_ground_truth():
    queries = [
        judged(["a"], {"a"}),
        judged(["x"], ()),
        judged(["x", "a"], {"a"}),
        judged([], {"a"}),
    ]
    values = metrics.average_precisions(queries)
    assert values[[0, 2, 3]].tolist() == [1, 1 / 4, 0] and math.isnan(values[1])
    assert metrics.mean_average_precision(queries) == pytest.approx(1.25 / 3, abs=1e-15)
    assert metrics.recall_at_rank_one(queries) == pytest.approx(1 / 3, abs=1e-15)


def test_google_landmarks_average_precision_by_hand():
    # Ranks 1, 3 and 4 of five positives; k = 3 sees the first two: (1/1 + 2/3) / min(5, 3).
    query = judged(["a", "x", "b", "c"], set("abcde"))
    assert metrics.mean_average_precision_at([query], 3) == pytest.approx(
        (1 + 2 / 3) / 3, abs=1e-15
    )
    everything = (1 + 2 / 3 + 3 / 4) / 5
    assert metrics.mean_average_precision_at([query]) == pytest.approx(everything, abs=1e-15)


def test_precision_at_k_by_hand():
    # Two positives at ranks 1 and 3. Beyond rank 3 nothing is left to find, so mP@5 looks at 3.
    query = judged(["a", "x", "b", "y", "z"], {"a", "b"})
    assert metrics.precisions_at([query], 1).tolist() == [1.0]
    assert metrics.precisions_at([query], 2).tolist() == [1 / 2]
    assert metrics.precisions_at([query], 5).tolist() == [2 / 3]
    # One positive is not among the answers: it may be anywhere below.
    assert metrics.precisions_at([judged(["a", "x", "b"], set("abc"))], 5).tolist() == [2 / 5]
    assert metrics.precisions_at([judged(["a"], set("abc"))], 10).tolist() == [1 / 10]
    assert metrics.precisions_at([judged([], set("a"))], 10).tolist() == [0.0]


@settings(deadline=None)
@given(rankings)
def test_agrees_with_the_published_arithmetic(drawn):
    ranked, positives, junk = drawn
    junk = junk - positives
    query = judged(ranked, positives, junk)
    value = metrics.average_precision(query)
    assert abs(value - slow.oxford_average_precision(ranked, positives, junk)) < 1e-12
    assert abs(value - slow.revisited_average_precision(ranked, positives, junk)) < 1e-12
    for k in (1, 2, 5, 10):
        expected = slow.revisited_precision_at(ranked, positives, junk, k)
        assert abs(metrics.precisions_at([query], k)[0] - expected) < 1e-12
    left = [identity for identity in ranked if identity not in junk]
    for k in (1, 3, 100):
        expected = slow.average_precision_at(left, positives, k)
        assert abs(metrics.average_precisions_at([query], k)[0] - expected) < 1e-12


@settings(deadline=None)
@given(rankings, st.integers(0, 9))
def test_short_lists_agree_too(drawn, length):
    ranked, positives, _ = drawn
    ranked = ranked[:length]
    query = judged(ranked, positives)
    expected = slow.oxford_average_precision(ranked, positives, ())
    assert abs(metrics.average_precision(query) - expected) < 1e-12
    expected = slow.average_precision_at(ranked, positives, 4)
    assert abs(metrics.average_precisions_at([query], 4)[0] - expected) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_many_queries_agree_with_one_at_a_time(seed):
    queries = random_queries(seed, 40)
    for metric in (
        metrics.average_precisions,
        lambda q: metrics.average_precisions_at(q, 5),
        lambda q: metrics.precisions_at(q, 5),
        metrics.first_answers_right,
    ):
        np.testing.assert_equal(metric(queries), np.concatenate([metric([q]) for q in queries]))


@settings(deadline=None)
@given(specs)
def test_all_are_shares(spec):
    queries = build(spec)
    known = np.array([query.n_positives > 0 for query in queries], bool)
    for values in (
        metrics.average_precisions(queries),
        metrics.average_precisions_at(queries, 3),
        metrics.precisions_at(queries, 5),
        metrics.first_answers_right(queries),
    ):
        assert (np.isnan(values) == ~known).all()
        assert ((values[known] >= 0) & (values[known] <= 1)).all()


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 5))
def test_a_perfect_ranking_gives_exactly_one(n_positives, n_wrong):
    query = judged(range(n_positives + n_wrong), set(range(n_positives)))
    assert metrics.average_precision(query) == 1.0
    assert metrics.mean_average_precision_at([query]) == 1.0
    assert metrics.recall_at_rank_one([query]) == 1.0
    for k in (1, 5, 10):
        assert metrics.mean_precision_at([query], k) == 1.0


@settings(deadline=None)
@given(rankings, st.data())
def test_a_right_answer_that_moves_up_lowers_nothing(drawn, data):
    ranked, positives, _ = drawn
    ranked = list(ranked)
    movable = [i for i in range(1, len(ranked)) if ranked[i] in positives]
    if not movable:
        return
    place = data.draw(st.sampled_from(movable))
    better = ranked.copy()
    better[place - 1], better[place] = better[place], better[place - 1]
    before, after = judged(ranked, positives), judged(better, positives)
    assert metrics.average_precision(after) >= metrics.average_precision(before) - 1e-12
    for k in (1, 3, 100):
        now, then = (metrics.average_precisions_at([q], k)[0] for q in (after, before))
        assert now >= then - 1e-12


@settings(deadline=None)
@given(specs)
def test_ties_are_bounded(spec):
    for metric in (
        metrics.mean_average_precision,
        metrics.mean_average_precision_at,
        metrics.recall_at_rank_one,
    ):
        low, given_order, high = (
            metric(build(spec, ties)) for ties in ("wrong_first", "given", "right_first")
        )
        assert math.isnan(low) or low - 1e-12 <= given_order <= high + 1e-12


@pytest.mark.parametrize("metric", [metrics.mean_average_precision_at, metrics.mean_precision_at])
def test_k_must_be_a_rank(metric):
    for k, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="k must be"):
            metric([judged(["a"], {"a"})], k)
    assert math.isnan(metric([]))

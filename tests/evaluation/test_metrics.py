"""Metrics against hand-computed values and slow, obvious reference code."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.evaluation import metrics
from delfsearch.evaluation.metrics import judge


def test_judge_orders_and_drops_junk():
    query = judge([("a", 1.0), ("b", 3.0), ("c", 2.0)], {"a"}, {"b"})
    assert query.scores.tolist() == [2.0, 1.0]
    assert query.correct.tolist() == [False, True]
    assert query.n_positives == 1


@pytest.mark.parametrize(
    ("answers", "positives", "junk", "message"),
    [
        ([("a", 1.0), ("a", 2.0)], {"a"}, (), "once"),
        ([("a", float("nan"))], {"a"}, (), "NaN"),
        ([("a", 1.0)], {"a"}, {"a"}, "both"),
    ],
)
def test_judge_refuses(answers, positives, junk, message):
    with pytest.raises(ValueError, match=message):
        judge(answers, positives, junk)


def test_average_precision_by_hand():
    # Right at ranks 1 and 3 of two positives. Rank 1: (1 + 1) / 2 / 2 = .5; then precision falls
    # to 1/2 at rank 2; rank 3: (1/2 + 2/3) / 2 / 2 = .291666...
    query = judge([("a", 3), ("x", 2), ("b", 1)], {"a", "b"})
    assert metrics.average_precision(query) == pytest.approx(0.5 + (0.5 + 2 / 3) / 4, abs=1e-12)
    assert math.isnan(metrics.average_precision(judge([("x", 1)], ())))
    assert metrics.average_precision(judge([], {"a"})) == 0.0


def test_first_answer_wrong_starts_from_precision_zero():
    query = judge([("x", 2), ("a", 1)], {"a"})
    assert metrics.average_precision(query) == pytest.approx((0 + 0.5) / 2, abs=1e-12)


def test_equal_scores_enter_together():
    # At threshold 5 the true and the false answer enter together: precision .5, never 1.
    queries = [judge([("a", 5)], {"a"}), judge([("x", 5)], ())]
    assert metrics.recall_at_precision(queries, 0.9) == 0.0
    assert metrics.recall_at_precision(queries, 0.5) == 1.0


def test_precision_may_fall_and_rise_again():
    # false at 9, then ten true: precision reaches .9 only at the end (10/11).
    answers = [("x", 9.0)] + [(i, 8.0 - i) for i in range(10)]
    queries = [judge(answers, set(range(10)))]
    assert metrics.recall_at_precision(queries, 0.9) == 1.0
    assert metrics.answered_at_precision(queries, 0.9) == 0.0
    assert metrics.recall_at_precision(queries, 0.95) == 0.0


def test_no_queries_and_no_answers():
    assert metrics.recall_at_precision([], 0.9) == 0.0
    assert metrics.recall_at_precision([judge([], {"a"})], 0.9) == 0.0
    assert metrics.recall_at_rank_one([judge([], {"a"})]) == 0.0
    assert math.isnan(metrics.mean_average_precision([judge([], ())]))


judged = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=8),
        st.integers(0, 3),
    ),
    max_size=6,
)


def build(spec):
    queries = []
    for answers, missing in spec:
        rows = [(i, float(score)) for i, (score, _) in enumerate(answers)]
        positives = {i for i, (_, right) in enumerate(answers) if right}
        queries.append(judge(rows, positives | {f"missing{i}" for i in range(missing)}))
    return queries


def slow_recall_at_precision(queries, precision):
    best, total = 0.0, sum(q.n_positives for q in queries)
    for threshold in {s for q in queries for s in q.scores}:
        retrieved = sum(int((q.scores >= threshold).sum()) for q in queries)
        right = sum(int((q.correct & (q.scores >= threshold)).sum()) for q in queries)
        if right / retrieved >= precision and total:
            best = max(best, right / total)
    return best


@settings(deadline=None)
@given(judged, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_recall_at_precision_agrees_with_slow_code(spec, precision):
    queries = build(spec)
    expected = slow_recall_at_precision(queries, precision)
    assert abs(metrics.recall_at_precision(queries, precision) - expected) < 1e-12


@settings(deadline=None)
@given(judged, st.randoms(use_true_random=False))
def test_order_of_queries_does_not_matter(spec, random):
    queries = build(spec)
    shuffled = list(queries)
    random.shuffle(shuffled)
    assert metrics.recall_at_precision(queries) == metrics.recall_at_precision(shuffled)
    np.testing.assert_equal(
        metrics.answered_at_precision(queries), metrics.answered_at_precision(shuffled)
    )


@settings(deadline=None)
@given(judged, st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_a_distractor_query_never_raises_precision(spec, scores):
    queries = build(spec)
    with_distractor = [*queries, judge([(i, float(s)) for i, s in enumerate(scores)], ())]
    before, after = metrics.pooled_curve(queries), metrics.pooled_curve(with_distractor)
    for threshold, precision in zip(before.thresholds, before.precision, strict=True):
        now = after.precision[after.thresholds >= threshold][-1]
        assert now <= precision + 1e-12
    assert metrics.recall_at_precision(with_distractor) <= metrics.recall_at_precision(queries)

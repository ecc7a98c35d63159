"""Precision and recall over all queries together, by hand, beside slow code, and as properties."""

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

PRECISIONS = st.sampled_from([0.1, 0.5, 0.85, 0.9, 0.95, 1.0])


def by_hand():
    """Two queries and a distractor query.

    score   9   8   7   6   5   4       a, b, c, d: right, of 5 positives in all (e is not found)
    first   a       x       b
    second      c           d   y
    distractor      z           z2
    """
    return [
        judge([("a", 9), ("x", 7), ("b", 5)], {"a", "b", "e"}),
        judge([("c", 8), ("d", 5), ("y", 4)], {"c", "d"}),
        judge([("z", 7), ("z2", 4)], ()),
    ]


def test_the_curve_by_hand():
    curve = metrics.pooled_curve(by_hand())
    assert curve.thresholds.tolist() == [9, 8, 7, 5, 4]
    assert curve.retrieved.tolist() == [1, 2, 4, 6, 8]  # x and z enter together, so do b and d
    assert curve.true_positives.tolist() == [1, 2, 2, 4, 4]
    assert curve.precision.tolist() == [1, 1, 2 / 4, 4 / 6, 4 / 8]
    assert curve.recall.tolist() == [1 / 5, 2 / 5, 2 / 5, 4 / 5, 4 / 5]


def test_figures_by_hand():
    queries = by_hand()
    assert metrics.recall_at_precision(queries, 0.9) == 2 / 5
    assert metrics.true_positives_at_precision(queries, 0.95) == 2
    assert metrics.true_positives_at_precision(queries, 0.9) == 2
    assert metrics.true_positives_at_precision(queries, 0.6) == 4
    assert metrics.recall_at_precision(queries, 0.6) == 4 / 5
    assert metrics.pooled_precision(queries, 7) == 2 / 4
    assert metrics.pooled_recall(queries, 5) == 4 / 5
    assert metrics.pooled_precision(queries) == 4 / 8
    assert metrics.precision_at_recall(queries, 0.4) == 1.0
    assert metrics.precision_at_recall(queries, 0.5) == 4 / 6  # 0.5 at 0.4 is passed over
    assert metrics.precision_at_recall(queries, 0.81) == 0.0  # e is never found
    # Both first answers are right, at 9 and 8. For precision 0.9 the threshold is 8.
    assert metrics.answered_at_precision(queries, 0.9) == 1.0
    assert metrics.threshold_at_precision(metrics.pooled_curve(queries), 0.9) == 8
    # First answers: a 9, c 8, z 7. GAP = (1/1 + 2/2) / 2 queries with ground truth.
    assert metrics.global_average_precision(queries) == 1.0


def test_answered_is_not_recall():
    # The first query's right first answer scores 3, below two false ones at 4: refused.
    queries = [
        judge([("a", 3)], {"a"}),
        judge([("b", 9), ("c", 8)], {"b", "c"}),
        judge([("x", 4), ("y", 4)], ()),
    ]
    assert metrics.recall_at_precision(queries, 0.9) == 2 / 3
    assert metrics.answered_at_precision(queries, 0.9) == 1 / 2
    assert metrics.answered_at_precision(queries, 0.6) == 1.0
    assert [metrics.answered_at_threshold(queries, t) for t in (3, 4, 9, 10)] == [1, 0.5, 0.5, 0]


def test_global_average_precision_by_hand():
    # First answers by score: right 9, wrong 8 (no ground truth), right 7, wrong 6; one query has no
    # answer. P at the right ones: 1/1 and 2/3. M = 4: the distractor query is not counted.
    queries = [
        judge([(12, 9.0)], {0, 12}),
        judge([(5, 8.0)], ()),
        judge([(100, 7.0), (1, 1.0)], {100, 200, 300}),
        judge([(2, 6.0), (1, 5.5)], {1}),  # only the first answer is a prediction
        judge([], {4}),
    ]
    assert metrics.global_average_precision(queries) == pytest.approx((1 + 2 / 3) / 4, abs=1e-15)


def test_equal_first_answers_enter_together():
    queries = [judge([("a", 5)], {"a"}), judge([("x", 5)], {"b"}), judge([("c", 5)], {"c"})]
    # 2 of the 3 together are right: P = 2/3 at each of the two, over M = 3.
    assert metrics.global_average_precision(queries) == pytest.approx(4 / 9, abs=1e-15)


def test_nothing_to_measure():
    for queries in ([], [judge([], ())], [judge([("x", 1)], ())]):
        assert metrics.recall_at_precision(queries) == 0.0
        assert metrics.true_positives_at_precision(queries) == 0
        assert metrics.precision_at_recall(queries, 0.0) == 0.0
        assert math.isnan(metrics.answered_at_precision(queries))
        assert math.isnan(metrics.global_average_precision(queries))
        assert math.isnan(metrics.pooled_recall(queries))
    assert math.isnan(metrics.pooled_precision([judge([], {"a"})]))
    assert metrics.pooled_recall([judge([], {"a"})]) == 0.0
    assert metrics.pooled_precision([judge([("x", 1)], ())]) == 0.0
    curve = metrics.pooled_curve([])
    assert len(curve.thresholds) == 0
    assert metrics.threshold_at_precision(curve, 0.9) == math.inf


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (90, r"precision must be in \(0, 1\]; got 90\. Give 0\.9 for 90%"),
        (0, "greater than 0"),
        (-0.5, "greater than 0"),
        (101, "at most 1"),
        (float("nan"), "finite"),
    ],
)
def test_a_precision_that_is_none(precision, message):
    for metric in (
        metrics.recall_at_precision,
        metrics.true_positives_at_precision,
        metrics.answered_at_precision,
    ):
        with pytest.raises(ValueError, match=message):
            metric(by_hand(), precision)
    with pytest.raises(ValueError, match=message):
        metrics.threshold_at_precision(metrics.pooled_curve(by_hand()), precision)


def test_a_recall_or_threshold_that_is_none():
    with pytest.raises(ValueError, match="recall must be at most 1"):
        metrics.precision_at_recall(by_hand(), 50)
    with pytest.raises(ValueError, match="threshold must be a number"):
        metrics.pooled_precision(by_hand(), float("nan"))


@settings(deadline=None)
@given(specs, PRECISIONS)
def test_agrees_with_slow_code(spec, precision):
    queries = build(spec)
    for name in ("recall_at_precision", "true_positives_at_precision", "answered_at_precision"):
        expected = getattr(slow, name)(queries, precision)
        np.testing.assert_allclose(
            getattr(metrics, name)(queries, precision), expected, rtol=0, atol=1e-12
        )
    np.testing.assert_allclose(
        metrics.precision_at_recall(queries, precision),
        slow.precision_at_recall(queries, precision),
        rtol=0,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        metrics.global_average_precision(queries),
        slow.global_average_precision(queries),
        rtol=0,
        atol=1e-12,
    )


@settings(deadline=None)
@given(specs)
def test_the_curve_agrees_with_slow_code(spec):
    queries = build(spec)
    curve = metrics.pooled_curve(queries)
    assert curve.thresholds.tolist() == slow.thresholds(queries)
    total = slow.all_positives(queries)
    for i, threshold in enumerate(curve.thresholds):
        retrieved, right = slow.accepted(queries, threshold)
        assert (curve.retrieved[i], curve.true_positives[i]) == (retrieved, right)
        assert abs(curve.precision[i] - right / retrieved) < 1e-12
        assert abs(metrics.pooled_precision(queries, threshold) - right / retrieved) < 1e-12
        if total:
            assert abs(curve.recall[i] - right / total) < 1e-12
            assert abs(metrics.pooled_recall(queries, threshold) - right / total) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_slow_code_on_more_queries(seed):
    queries = random_queries(seed, 60, levels=40)
    for precision in (0.5, 0.7, 0.8, 0.9, 0.95):
        for name in ("recall_at_precision", "true_positives_at_precision", "answered_at_precision"):
            expected = getattr(slow, name)(queries, precision)
            assert abs(getattr(metrics, name)(queries, precision) - expected) < 1e-12
    expected = slow.global_average_precision(queries)
    assert abs(metrics.global_average_precision(queries) - expected) < 1e-12


def every_figure(queries):
    return [
        metrics.recall_at_precision(queries),
        metrics.true_positives_at_precision(queries, 0.5),
        metrics.answered_at_precision(queries, 0.5),
        metrics.precision_at_recall(queries, 0.3),
        metrics.pooled_precision(queries, 2),
        metrics.pooled_recall(queries, 2),
        metrics.global_average_precision(queries),
        metrics.mean_average_precision(queries),
        metrics.mean_average_precision_at(queries, 3),
        metrics.mean_precision_at(queries, 5),
        metrics.recall_at_rank_one(queries),
    ]


@settings(deadline=None)
@given(specs, st.randoms(use_true_random=False))
def test_neither_the_order_of_queries_nor_of_tied_answers_matters(spec, random):
    before = every_figure(build(spec))
    shuffled = [(random.sample(answers, len(answers)), missing) for answers, missing in spec]
    random.shuffle(shuffled)
    np.testing.assert_equal(every_figure(build(shuffled)), before)


@settings(deadline=None)
@given(specs, st.randoms(use_true_random=False))
def test_pooled_figures_do_not_know_the_order_of_ties_at_all(spec, random):
    """Whatever judging made of ties: equal scores enter together."""
    figures = [
        [
            metrics.recall_at_precision(queries, 0.6),
            metrics.true_positives_at_precision(queries, 0.6),
            metrics.precision_at_recall(queries, 0.3),
            metrics.pooled_precision(queries, 2),
        ]
        for queries in (
            build(spec, "wrong_first"),
            build(spec, "given"),
            build(spec, "right_first"),
        )
    ]
    np.testing.assert_equal(figures[1:], [figures[0]] * 2)


@settings(deadline=None)
@given(specs)
def test_answered_at_the_threshold_of_a_precision(spec):
    queries = build(spec)
    for precision in (0.5, 0.9):
        threshold = metrics.threshold_at_precision(metrics.pooled_curve(queries), precision)
        expected = metrics.answered_at_precision(queries, precision)
        np.testing.assert_equal(metrics.answered_at_threshold(queries, threshold), expected)
    with pytest.raises(ValueError, match="threshold"):
        metrics.answered_at_threshold(queries, float("nan"))


@settings(deadline=None)
@given(specs, st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_a_distractor_query_raises_nothing(spec, scores):
    queries = build(spec)
    more = [*queries, judge([(i, float(s)) for i, s in enumerate(scores)], ())]
    for precision in (0.5, 0.9):
        for metric in (
            metrics.recall_at_precision,
            metrics.true_positives_at_precision,
            metrics.answered_at_precision,
        ):
            now, then = metric(more, precision), metric(queries, precision)
            assert now <= then or (math.isnan(now) and math.isnan(then))
    assert metrics.precision_at_recall(more, 0.3) <= metrics.precision_at_recall(queries, 0.3)
    gap = metrics.global_average_precision(queries)
    assert math.isnan(gap) or metrics.global_average_precision(more) <= gap
    for threshold in range(7):
        now, then = (metrics.pooled_precision(q, threshold) for q in (more, queries))
        assert math.isnan(then) or now <= then
        now, then = (metrics.pooled_recall(q, threshold) for q in (more, queries))
        assert now == then or (math.isnan(now) and math.isnan(then))


@settings(deadline=None)
@given(specs)
def test_curves_are_monotone_and_bounded(spec):
    queries = build(spec)
    curve = metrics.pooled_curve(queries)
    assert (np.diff(curve.thresholds) < 0).all()
    assert (np.diff(curve.recall) >= 0).all() and (np.diff(curve.retrieved) > 0).all()
    for values in (curve.precision, curve.recall):
        assert ((values >= 0) & (values <= 1)).all()
    grid = [0.05, 0.3, 0.5, 0.9, 1.0]
    for metric in (
        metrics.recall_at_precision,
        metrics.true_positives_at_precision,
        metrics.precision_at_recall,
    ):
        values = [metric(queries, x) for x in grid]
        assert values == sorted(values, reverse=True)


@settings(deadline=None)
@given(specs, PRECISIONS)
def test_recall_and_true_positives_are_one_thing(spec, precision):
    queries = build(spec)
    total = slow.all_positives(queries)
    expected = metrics.recall_at_precision(queries, precision) * total
    right = metrics.true_positives_at_precision(queries, precision)
    assert isinstance(right, int) and abs(right - expected) < 1e-9


@settings(deadline=None)
@given(specs, PRECISIONS)
def test_only_the_order_of_scores_matters(spec, precision):
    stretched = [([(3 * s - 70, right) for s, right in answers], n) for answers, n in spec]
    one, other = build(spec), build(stretched)
    np.testing.assert_equal(
        metrics.recall_at_precision(one, precision), metrics.recall_at_precision(other, precision)
    )
    np.testing.assert_equal(
        metrics.answered_at_precision(one, precision),
        metrics.answered_at_precision(other, precision),
    )


@settings(deadline=None)
@given(specs)
def test_junk_changes_nothing(spec):
    with_junk = []
    for number, (answers, missing) in enumerate(spec):
        rows = [(i, float(score)) for i, (score, _) in enumerate(answers)]
        positives = {i for i, (_, right) in enumerate(answers) if right}
        positives |= {f"missing{i}" for i in range(missing)}
        junk = [(f"j{i}", float(i)) for i in range(number + 1)]
        with_junk.append(judge([*junk, *rows], positives, {identity for identity, _ in junk}))
    np.testing.assert_equal(every_figure(with_junk), every_figure(build(spec)))


def test_a_perfect_system_reaches_one():
    queries = [judge([(i, 9.0 - i) for i in range(n)], set(range(n))) for n in (1, 3, 7)]
    queries.append(judge([("x", 1.0)], ()))  # below every right answer
    for precision in (0.5, 0.9, 1.0):
        assert metrics.recall_at_precision(queries, precision) == 1.0
        assert metrics.answered_at_precision(queries, precision) == 1.0
    assert metrics.true_positives_at_precision(queries, 1.0) == 11
    assert metrics.precision_at_recall(queries, 1.0) == 1.0
    assert metrics.global_average_precision(queries) == 1.0


def test_a_decimal_precision_is_reached_exactly():
    """19 right of 20 are 95%, whatever 0.95 is in binary."""
    for hundredth in range(1, 101):
        answers = [(i, 1.0) for i in range(100)]
        queries = [judge(answers, set(range(hundredth)))]
        assert metrics.recall_at_precision(queries, hundredth / 100) == 1.0
        assert metrics.true_positives_at_precision(queries, hundredth / 100) == hundredth

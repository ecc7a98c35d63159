"""Confidence intervals: the fast way agrees with evaluating anew, and they mean what they say."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from metric_references import random_queries

from delfsearch.evaluation import metrics
from delfsearch.evaluation.bootstrap import paired_difference
from delfsearch.evaluation.metrics import (
    JudgedQueries,
    bootstrap_curve,
    bootstrap_difference,
    bootstrap_interval,
    judge,
)
from delfsearch.evaluation.resampling import Resampler

METRICS = {
    "R@90%": metrics.recall_at_precision,
    "R@60%": partial(metrics.recall_at_precision, precision=0.6),
    "R@70%": partial(partial(metrics.recall_at_precision, precision=0.1), precision=0.7),
    "TP@60": partial(metrics.true_positives_at_precision, precision=0.6),
    "answered@60%": partial(metrics.answered_at_precision, precision=0.6),
    "answered at a threshold": partial(metrics.answered_at_threshold, threshold=6),
    "P at 40% recall": partial(metrics.precision_at_recall, recall=0.4),
    "P at a threshold": partial(metrics.pooled_precision, threshold=6),
    "R at a threshold": partial(metrics.pooled_recall, threshold=6),
    "GAP": metrics.global_average_precision,
    "mAP": metrics.mean_average_precision,
    "mAP@5": partial(metrics.mean_average_precision_at, k=5),
    "mP@5": partial(metrics.mean_precision_at, k=5),
    "R@1": metrics.recall_at_rank_one,
}


def counts_of(queries, *, scenes=None, by_scene=True, n_resamples=50, random_state=0):
    resampler = Resampler.of(
        JudgedQueries.of(queries),
        scenes=scenes,
        by_scene=by_scene,
        n_resamples=n_resamples,
        random_state=random_state,
    )
    return np.concatenate(list(resampler.blocks()))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("scenes", [None, 6])
def test_fast_is_the_same_as_evaluating_every_resample(name, scenes):
    metric = METRICS[name]
    queries = random_queries(3, 40, scenes=scenes, levels=12)
    interval = bootstrap_interval(queries, metric, n_resamples=40)
    expected = []
    for counts in counts_of(queries, n_resamples=40):
        resample = [query for query, n in zip(queries, counts) for _ in range(n)]
        expected.append(metric(resample))
    np.testing.assert_allclose(interval.samples, expected, rtol=0, atol=1e-12)
    assert interval.value == metric(queries)
    assert len(set(expected)) > 5  # they do differ
    # A metric of the user's own goes the slow way to the same place.
    own = bootstrap_interval(queries, lambda q: metric(q), n_resamples=40)
    np.testing.assert_allclose(own.samples, interval.samples, rtol=0, atol=1e-12)
    low, high = np.quantile(expected, [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_every_metric_of_one_number_is_here():
    """A metric that is added without a line in METRICS above is noticed."""
    tested = set()
    for metric in METRICS.values():
        while isinstance(metric, partial):
            metric = metric.func
        tested.add(metric.__name__)
    curves = {"pooled_curve", "threshold_at_precision"}
    words = ("_at_", "average_precision", "precision_at", "pooled_", "recall")
    public = {n for n in metrics.__all__ if n[0].islower() and any(word in n for word in words)}
    per_query = {"average_precision", "average_precisions", "average_precisions_at"}
    assert public - curves - per_query == tested


def test_distractor_queries_are_drawn_among_themselves():
    queries = random_queries(0, 50, distractors=0.5)
    has_truth = np.array([query.n_positives > 0 for query in queries])
    counts = counts_of(queries)
    assert counts.shape == (50, 50)
    assert (counts[:, has_truth].sum(axis=1) == has_truth.sum()).all()
    assert (counts[:, ~has_truth].sum(axis=1) == (~has_truth).sum()).all()
    assert 5 < has_truth.sum() < 45 and (counts == 0).any() and (counts > 1).any()
    alike = [judge([], {1}) for _ in range(30)] + [judge([], ()) for _ in range(30)]
    counts = counts_of(alike)
    assert (counts[:, :30] != counts[:, 30:]).any(axis=1).all()  # each part by its own dice


def test_scenes_are_drawn_whole():
    queries = random_queries(0, 60, distractors=0.0, scenes=7)
    queries += [judge([(0, 1.0)], {0}) for _ in range(5)]  # without a scene: each by itself
    scenes = [query.scene for query in queries]
    counts = counts_of(queries)
    for scene in set(scenes) - {""}:
        own = counts[:, [i for i, s in enumerate(scenes) if s == scene]]
        assert (own == own[:, :1]).all()
    assert not (counts[:, -5:] == counts[:, -5:-4]).all()
    n_clusters = len(set(scenes) - {""}) + 5
    assert bootstrap_interval(queries, metrics.recall_at_rank_one).n_clusters == n_clusters
    first = [scenes.index(scene) for scene in scenes[:60]]
    assert (
        counts[:, sorted(set(first))].sum(axis=1) + counts[:, -5:].sum(axis=1) == n_clusters
    ).all()


def test_scenes_can_be_given_or_left_aside():
    queries = random_queries(0, 30, distractors=0.0, scenes=4)
    plain = [judge_again(query) for query in queries]
    scenes = [query.scene for query in queries]
    metric = metrics.mean_average_precision
    by_scene = bootstrap_interval(queries, metric)
    assert (
        bootstrap_interval(plain, metric, scenes=scenes).samples.tolist()
        == by_scene.samples.tolist()
    )
    single = bootstrap_interval(queries, metric, by_scene=False)
    assert single.samples.tolist() == bootstrap_interval(plain, metric).samples.tolist()
    assert (by_scene.n_clusters, single.n_clusters) == (4, 30)
    with pytest.raises(ValueError, match="scenes must have 30 names, one per query; got 1"):
        bootstrap_interval(queries, metric, scenes=["a"])


def judge_again(query):
    return metrics.JudgedQuery(query.scores, query.correct, query.n_positives)


def test_the_same_seed_gives_the_same_interval_whatever_the_block(monkeypatch):
    queries = random_queries(1, 30)
    metric = metrics.recall_at_precision
    once = bootstrap_interval(queries, metric, n_resamples=101)
    again = bootstrap_interval(queries, metric, n_resamples=101)
    assert once.samples.tolist() == again.samples.tolist()
    monkeypatch.setattr("delfsearch.evaluation.resampling._BLOCK", 200)
    blocks = bootstrap_interval(queries, metric, n_resamples=101)
    assert once.samples.tolist() == blocks.samples.tolist()
    other = bootstrap_interval(queries, metric, n_resamples=101, random_state=1)
    assert once.samples.tolist() != other.samples.tolist()


def test_a_share_has_its_textbook_interval():
    """R@1 of 400 independent queries at .7: standard error sqrt(.7 * .3 / 400) = .0229."""
    queries = [judge([("a" if i % 10 < 7 else "x", 1.0)], {"a"}) for i in range(400)]
    interval = bootstrap_interval(queries, metrics.recall_at_rank_one, n_resamples=4000)
    assert interval.value == 0.7
    assert interval.samples.std() == pytest.approx(math.sqrt(0.7 * 0.3 / 400), rel=0.05)
    assert interval.low == pytest.approx(0.7 - 1.96 * 0.0229, abs=0.005)
    assert interval.high == pytest.approx(0.7 + 1.96 * 0.0229, abs=0.005)
    wide = bootstrap_interval(
        queries, metrics.recall_at_rank_one, n_resamples=4000, confidence=0.99
    )
    assert wide.low < interval.low < interval.high < wide.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    """200 samples of 80 queries of a known population: about 95% of the intervals hold its mean."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        right = rng.random(80) < 0.6
        queries = [judge([("a" if r else "x", 1.0)], {"a"}) for r in right]
        interval = bootstrap_interval(
            queries, metrics.recall_at_rank_one, n_resamples=300, random_state=trial
        )
        held += interval.low <= 0.6 <= interval.high
    assert 180 <= held <= 199  # 95% of 200 is 190, standard deviation 3


def test_queries_of_one_scene_make_wider_intervals():
    """20 scenes of 20 queries that fare alike are 20 observations, not 400."""
    queries = [
        judge([("a" if scene % 2 else "x", 1.0)], {"a"}, scene=f"s{scene}")
        for scene in range(20)
        for _ in range(20)
    ]
    by_scene = bootstrap_interval(queries, metrics.recall_at_rank_one)
    single = bootstrap_interval(queries, metrics.recall_at_rank_one, by_scene=False)
    ratio = by_scene.samples.std() / single.samples.std()
    assert ratio == pytest.approx(math.sqrt(20), rel=0.15)


def better(queries, share, seed):
    """The same queries, some wrong answers of which a better system does not give."""
    rng = np.random.default_rng(seed)
    result = []
    for query in queries:
        kept = query.correct | (rng.random(len(query.correct)) > share)
        result.append(
            metrics.JudgedQuery(
                query.scores[kept], query.correct[kept], query.n_positives, query.id, query.scene
            )
        )
    return result


@pytest.mark.parametrize("name", METRICS)
def test_differences_are_paired(name):
    queries = random_queries(5, 60, scenes=12, levels=12)
    improved = better(queries, 0.5, 0)
    difference = bootstrap_difference(improved, queries, METRICS[name], n_resamples=200)
    one = bootstrap_interval(improved, METRICS[name], n_resamples=200)
    other = bootstrap_interval(queries, METRICS[name], n_resamples=200)
    np.testing.assert_allclose(difference.samples, one.samples - other.samples, rtol=0, atol=1e-12)
    assert (difference.first, difference.second) == (one.value, other.value)
    assert difference.difference == one.value - other.value
    assert difference.share_below_zero == (difference.samples < 0).mean()
    free = paired_difference(one, other)
    np.testing.assert_array_equal(free.samples, difference.samples)
    for key in ("difference", "low", "high", "p_value", "n_clusters", "n_undefined"):
        assert getattr(free, key) == getattr(difference, key)
    back = bootstrap_difference(queries, improved, METRICS[name], n_resamples=200)
    assert back.difference == -difference.difference
    assert back.p_value == difference.p_value
    assert back.low == pytest.approx(-difference.high, abs=1e-12)


def test_pairing_sees_what_intervals_apart_do_not():
    queries = random_queries(5, 80, levels=12)
    improved = better(queries, 0.5, 0)
    metric = metrics.mean_average_precision
    difference = bootstrap_difference(improved, queries, metric)
    apart = bootstrap_interval(improved, metric).low - bootstrap_interval(queries, metric).high
    assert apart < 0 < difference.low and difference.p_value < 0.01
    assert difference.p_value == 2 / 1001  # none of 1,000 at or below zero, counted with one more


def test_intervals_that_do_not_belong_together():
    queries = random_queries(5, 20, scenes=4)
    metric = metrics.recall_at_rank_one
    one = bootstrap_interval(queries, metric, n_resamples=20)
    for other, message in (
        (bootstrap_interval(queries, metric, n_resamples=10), "n_resamples; got 20 and 10"),
        (bootstrap_interval(queries, metric, n_resamples=20, confidence=0.9), "0.95 and 0.9"),
        (bootstrap_interval(queries, metric, n_resamples=20, by_scene=False), "same n_clusters"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_difference(one, other)


def test_a_system_is_not_better_than_itself():
    queries = random_queries(0, 30)
    for metric in METRICS.values():
        same = bootstrap_difference(queries, queries, metric, n_resamples=30)
        assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
        assert same.share_below_zero == 0


def test_chance_is_seldom_significant():
    """Two systems that are right by the same coin: p < .05 in about one comparison in twenty."""
    rng = np.random.default_rng(0)
    significant = 0
    for trial in range(200):
        one, other = (
            [judge([("a" if r else "x", 1.0)], {"a"}) for r in rng.random(60) < 0.5]
            for _ in range(2)
        )
        difference = bootstrap_difference(
            one, other, metrics.recall_at_rank_one, n_resamples=200, random_state=trial
        )
        significant += difference.p_value < 0.05
    assert 1 <= significant <= 22  # 10 expected, standard deviation 3


def test_only_the_same_queries_are_compared():
    queries = random_queries(0, 10, scenes=3)
    metric = metrics.mean_average_precision
    with pytest.raises(ValueError, match="on the same queries; got 10 and 9"):
        bootstrap_difference(queries, queries[:9], metric)
    with pytest.raises(ValueError, match="their ids differ at query 0: 'q0' and 'q9'"):
        bootstrap_difference(queries, queries[::-1], metric)
    nameless = [judge_again(query) for query in queries]
    assert bootstrap_difference(queries, nameless, metric, n_resamples=5).difference == 0
    assert bootstrap_difference(nameless, queries, metric, n_resamples=5).n_clusters <= 3
    nameless[4] = judge([], set(range(20)))
    with pytest.raises(ValueError, match="same ground truth; query 4 has"):
        bootstrap_difference(queries, nameless, metric)
    moved = [judge([], {1}, scene=scene) for scene in "ab"]
    with pytest.raises(ValueError, match="their scenes differ at query 0: 'a' and 'b'"):
        bootstrap_difference(moved, moved[::-1], metric)


def test_too_little_to_draw_from_says_so():
    one_scene = [judge([("a", 1.0)], {"a"}, scene="only") for _ in range(9)]
    interval = bootstrap_interval(one_scene, metrics.recall_at_rank_one)
    assert (interval.value, interval.n_clusters) == (1.0, 1)
    assert math.isnan(interval.low) and math.isnan(interval.high)
    difference = bootstrap_difference(one_scene, one_scene, metrics.recall_at_rank_one)
    assert math.isnan(difference.low) and math.isnan(difference.p_value)
    for queries in ([], [judge([("x", 1.0)], ())] * 5):
        nothing = bootstrap_interval(queries, metrics.mean_average_precision, n_resamples=7)
        assert math.isnan(nothing.value) and math.isnan(nothing.low)
        assert nothing.n_undefined == 7 and nothing.n_clusters == 0
        assert bootstrap_interval(queries, metrics.recall_at_precision).value == 0.0


def test_undefined_resamples_are_counted_and_left_out():
    # Precision where only one of two queries answers: undefined if the other is drawn twice.
    queries = [judge([("a", 5.0)], {"a"}), judge([], {"b"})]
    interval = bootstrap_interval(queries, metrics.pooled_precision, n_resamples=400)
    assert 60 < interval.n_undefined < 140  # a quarter of 400
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_the_curve_and_its_band():
    queries = random_queries(2, 40, levels=12)
    band = bootstrap_curve(queries, n_resamples=60)
    assert band.recalls.tolist() == np.linspace(0, 1, 101).tolist()
    for i in (0, 20, 40, 90, 100):
        metric = partial(metrics.precision_at_recall, recall=float(band.recalls[i]))
        interval = bootstrap_interval(queries, metric, n_resamples=60)
        assert (band.precision[i], band.low[i], band.high[i]) == pytest.approx(
            (interval.value, interval.low, interval.high), abs=1e-12
        )
    assert (np.diff(band.precision) <= 0).all() and (band.low <= band.high).all()
    assert np.isnan(bootstrap_curve([], n_resamples=3).low).all()
    with pytest.raises(ValueError, match="recalls must be a 1-D array of numbers in"):
        bootstrap_curve(queries, [50])


@pytest.mark.parametrize("function", [bootstrap_interval, bootstrap_curve])
def test_arguments_that_are_none(function):
    queries = random_queries(0, 5)
    arguments = (
        (queries, metrics.recall_at_rank_one) if function is bootstrap_interval else (queries,)
    )
    with pytest.raises(ValueError, match=r"between 0 and 1; got 95\. Give 0\.95 for 95%"):
        function(*arguments, confidence=95)
    with pytest.raises(ValueError, match="between 0 and 1; got 1"):
        function(*arguments, confidence=1)
    with pytest.raises(ValueError, match="n_resamples must be at least 1; got 0"):
        function(*arguments, n_resamples=0)
    with pytest.raises(ValueError, match="random_state must be at least 0"):
        function(*arguments, random_state=-1)
    assert function(*arguments, n_resamples=3, random_state=None).n_clusters > 0


def test_options_of_a_metric_are_checked():
    with pytest.raises(ValueError, match=r"Give 0\.9 for 90%"):
        bootstrap_interval(random_queries(0, 5), partial(metrics.recall_at_precision, precision=90))


def test_how_they_print():
    queries = [judge([("a" if i % 4 else "x", 1.0)], {"a"}) for i in range(100)]
    interval = bootstrap_interval(queries, metrics.recall_at_rank_one)
    assert str(interval).startswith("0.750 [0.6") and "samples" not in repr(interval)
    difference = bootstrap_difference(queries, queries, metrics.recall_at_rank_one)
    assert str(difference) == "+0.000 [+0.000, +0.000], p = 1"

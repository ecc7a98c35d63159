"""Comparing answers with ground truth: one query, a dataset, and arrays, to the same result."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import Truth, random_queries

import delfsearch.evaluation
from delfsearch.evaluation import metrics, selection
from delfsearch.evaluation.metrics import JudgedQueries, JudgedQuery, judge, judge_all, judge_arrays


def test_the_query_itself_is_left_out_and_reported():
    answers = [("q", 9.0), ("a", 8.0), ("x", 7.0)]
    query = judge(answers, {"q", "a"}, query_id="q", scene="tower")
    assert query.scores.tolist() == [8.0, 7.0]
    assert query.correct.tolist() == [True, False]
    assert (query.n_positives, query.self_excluded, query.id) == (1, True, "q")
    assert query.scene == "tower"
    kept = judge(answers, {"q", "a"}, query_id="q", exclude_self=False)
    assert (kept.n_positives, kept.self_excluded, len(kept.scores)) == (2, False, 3)
    assert not judge(answers[1:], {"a"}, query_id="q").self_excluded
    other_name = judge(answers, {"a"}, query_id="box 1", own_id="q")
    assert other_name.self_excluded and other_name.id == "box 1" and len(other_name.scores) == 2


@pytest.mark.parametrize(
    ("ties", "correct"),
    [
        ("wrong_first", [False, True, False, True]),
        ("given", [True, False, False, True]),
        ("right_first", [True, False, True, False]),
    ],
)
def test_equal_scores(ties, correct):
    answers = [("a", 2), ("x", 2), ("y", 1), ("b", 1)]
    assert judge(answers, {"a", "b"}, ties=ties).correct.tolist() == correct
    ids, scores = [[0, 7, 8, 1]], [[2, 2, 1, 1]]
    assert judge_arrays(ids, scores, [[0, 1]], ties=ties).correct.tolist() == correct


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([("a", float("inf"))], "finite; got inf"),
        ([("a", None)], "must be numbers; got dtype object"),
        ([("a", "3")], "must be numbers"),
        ([("a", 1.0), ("b", float("nan"))], "of query 'q' must be finite; got NaN"),
        ([("a", 1.0), ("b", 2.0), ("b", 3.0)], "of query 'q' must hold every id once; got 'b'"),
    ],
)
def test_answers_that_are_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        judge(answers, {"a"}, query_id="q")


def test_ids_as_one_string_are_refused():
    with pytest.raises(TypeError, match=r"positives must be a collection of ids.*'db/1\.jpg'"):
        judge([], "db/1.jpg")
    with pytest.raises(ValueError, match="ties must be one of"):
        judge([], (), ties="random")


def test_a_dataset():
    queries = [
        Truth("q", positives=frozenset("ab"), junk=frozenset("j"), scene="tower"),
        Truth("nothing"),
    ]
    answers = {"nothing": [], "q": [("j", 3), ("a", 2), ("q", 4)], "another": [("a", 1)]}
    judged = judge_all(answers, queries)
    assert len(judged) == 2 and judged.ids == ("q", "nothing") and judged.scenes == ("tower", "")
    assert judged[0].correct.tolist() == [True] and judged[0].n_positives == 2
    assert judged[-1].n_positives == 0 and not len(judged[-1].scores)
    assert judged.self_excluded_ids == ("q",)
    assert judge_all(answers, queries, exclude_self=False).self_excluded_ids == ()
    with pytest.raises(ValueError, match=r"'q' has none\. Give an empty list"):
        judge_all({"nothing": []}, queries)
    with pytest.raises(ValueError, match="queries must hold every id once; got 'q' twice"):
        judge_all(answers, [queries[0], queries[0]])
    with pytest.raises(ValueError, match="of query 'q' must not be both positive and junk"):
        judge_all(answers, [Truth("q", positives=frozenset("a"), junk=frozenset("a"))])


def test_a_query_named_after_a_box_in_a_photo():
    """Oxford's photo is a positive of its own query and stays; in junk it goes, and is reported."""

    class Box(Truth):
        photo = "p"

    answers = {"box": [("p", 9), ("a", 8)]}
    stays = judge_all(answers, [Box("box", positives=frozenset("pa"))])
    assert stays[0].n_positives == 2 and len(stays[0].scores) == 2 and not stays[0].self_excluded
    goes = judge_all(answers, [Box("box", positives=frozenset("a"), junk=frozenset("p"))])
    assert goes[0].n_positives == 1 and len(goes[0].scores) == 1 and goes[0].self_excluded


numbered = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=7, unique_by=lambda p: p[0]
        ),
        st.sets(st.integers(0, 9), max_size=5),
        st.sets(st.integers(0, 9), max_size=3),
        st.integers(-1, 9),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(
    numbered, st.sampled_from(["wrong_first", "given", "right_first"]), st.sampled_from([1, 3, 99])
)
def test_arrays_agree_with_one_query_at_a_time(spec, ties, block):
    width = max((len(answers) for answers, *_ in spec), default=0) + 1
    ids = np.full((len(spec), width), -1)
    scores = np.full((len(spec), width), np.nan)  # not looked at where there is no answer
    junk = [ignored - positives for _, positives, ignored, _ in spec]
    for row, (answers, *_) in enumerate(spec):
        for column, (identity, score) in enumerate(answers):
            ids[row, column], scores[row, column] = identity, score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("delfsearch.evaluation.numbered._BLOCK", block)
        judged = judge_arrays(
            ids,
            scores,
            [p for _, p, *_ in spec],
            junk,
            own_ids=[own for *_, own in spec],
            ties=ties,
        )
    assert len(judged) == len(spec)
    for query, (answers, positives, _, own), ignored in zip(judged, spec, junk):
        expected = judge(answers, positives, ignored, query_id=None if own < 0 else own, ties=ties)
        assert query.scores.tolist() == expected.scores.tolist()
        assert query.correct.tolist() == expected.correct.tolist()
        assert query.n_positives == expected.n_positives
        assert query.self_excluded == expected.self_excluded


def test_numbers_too_large_for_a_product():
    large = 2**62 - 1
    judged = judge_arrays(
        [[large, 5, 3, -1]] * 5,
        [[4, 3, 2, 1]] * 5,
        [[3, large], [5], [large - 1], [3], [5, large]],
        [[], [large], [large, 3], [7], []],
    )
    assert [query.correct.tolist() for query in judged] == [
        [True, False, True],
        [True, False],
        [False],
        [False, False, True],
        [True, True, False],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.5]], [[1]], [[]]), "ids must be integers; got dtype float64"),
        (([0], [1], [[]]), "ids must be a 2-D array"),
        (([[0, 1]], [[1]], [[]]), r"scores must have the shape of ids \(1, 2\); got \(1, 1\)"),
        (([[0]], [["a"]], [[]]), "scores must be numbers"),
        (([[0, 1]], [[1, np.nan]], [[]]), "finite; got nan for answer 1 in query 0"),
        (([[3, 3]], [[1, 2]], [[]]), "every id once; got 3 twice or more in query 0"),
        (([[-2]], [[1]], [[]]), "at least 0, or -1 for no answer; got -2"),
        (([[0]], [[1]], []), "positives must have 1 collections"),
        (([[0]], [[1]], [[-1]]), "positives must be ids of at least 0; got -1"),
        (([[0]], [[1]], [["a"]]), "positives must be integers"),
        (([[0]], [[1]], [[4]], [[4, 5]]), "both positive and junk; got 4 in query 0"),
    ],
)
def test_arrays_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        judge_arrays(*arguments)


@pytest.mark.parametrize("name", ["own_ids", "query_ids", "scenes"])
def test_names_must_fit(name):
    with pytest.raises(ValueError, match=f"{name} must have 1 elements"):
        judge_arrays([[0]], [[1]], [[]], **{name: [1, 2]})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts_and_types_of_arrays(dtype, order):
    ids = np.array([[4, 1, 2], [0, 3, -1]], order=order)[:, ::-1]
    scores = np.array([[9, 5, 7], [2, 4, 0]], dtype, order=order)[:, ::-1]
    judged = judge_arrays(ids, scores, [{1}, {3, 4}])
    assert judged.scores.tolist() == [9, 7, 5, 4, 2]
    assert judged.correct.tolist() == [False, False, True, True, False]


def test_no_queries_and_no_answers():
    empty = judge_arrays(np.zeros((0, 5), int), np.zeros((0, 5)), [])
    assert len(empty) == 0 and list(empty) == []
    silent = judge_arrays(np.zeros((2, 0), int), np.zeros((2, 0)), [[1], []])
    assert silent.n_answers.tolist() == [0, 0] and silent.n_positives.tolist() == [1, 0]


def test_many_queries_are_a_sequence_of_one():
    queries = random_queries(0, 9, scenes=3)
    judged = JudgedQueries.of(queries)
    assert JudgedQueries.of(judged) is judged and len(judged) == 9
    for one, other in zip(queries, judged):
        assert one.scores.tolist() == other.scores.tolist()
        assert one.correct.tolist() == other.correct.tolist()
        assert (one.id, one.scene, one.n_positives) == (other.id, other.scene, other.n_positives)
    assert [query.id for query in judged[2:5]] == ["q2", "q3", "q4"]
    assert [query.id for query in judged.take([5, 5, 0])] == ["q5", "q5", "q0"]
    assert judged.take([5, 5])[1].scores.tolist() == queries[5].scores.tolist()
    assert judged[-1].id == "q8"
    with pytest.raises(IndexError):
        judged[9]
    both = JudgedQueries.concatenate([judged[:4], [judge([], ())], judged[4:]])
    assert both.ids == (*judged.ids[:4], None, *judged.ids[4:])
    assert both.scenes == (*judged.scenes[:4], "", *judged.scenes[4:])
    assert both.take([0, 1, 2, 3, 5, 6, 7, 8, 9]).scores.tolist() == judged.scores.tolist()
    assert len(JudgedQueries.concatenate([])) == 0


def one(scores, correct, n_positives):
    return JudgedQuery(np.array(scores, float), np.array(correct, bool), n_positives, id="q")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (one([1, 2], [0, 0], 1), r"must fall within a query; got 1\.0 and then 2\.0 in query 'q'"),
        (one([1, np.nan], [0, 0], 1), "finite; got nan in query 'q'"),
        (one([2, 1], [1, 1], 1), "more right answers than positives; got 2 and 1 in query 'q'"),
        (one([2], [1, 1], 2), "one value per score; got 2 for 1"),
        (one([], [], -1), "n_positives must be at least 0; got -1"),
    ],
)
def test_judged_queries_made_by_hand_are_checked(query, message):
    with pytest.raises(ValueError, match=message):
        metrics.recall_at_precision([query])


def test_what_is_no_judged_query_is_refused():
    with pytest.raises(TypeError, match="must be JudgedQuery values"):
        metrics.mean_average_precision([[("a", 1.0)]])
    with pytest.raises(ValueError, match="offsets must rise from 0 to 1"):
        JudgedQueries(np.zeros(1), np.zeros(1, bool), np.array([0, 0]), np.array([1]))
    with pytest.raises(ValueError, match="scenes must be 1, one per query, or none; got 2"):
        JudgedQueries(
            np.zeros(1), np.zeros(1, bool), np.array([0, 1]), np.array([1]), scenes=("a", "b")
        )


def test_scores_may_rise_from_one_query_to_the_next():
    queries = [one([1], [0], 1), one([], [], 0), one([5, 3], [1, 0], 1)]
    assert JudgedQueries.of(queries).n_answers.tolist() == [1, 0, 2]


def test_public_names():
    for name in metrics.__all__:
        assert getattr(delfsearch.evaluation, name) is getattr(metrics, name)
    of_selection = set(delfsearch.evaluation.__all__) - set(metrics.__all__)
    assert set(metrics.__all__) < set(delfsearch.evaluation.__all__)
    assert len(of_selection) == 7
    for name in of_selection:
        assert getattr(delfsearch.evaluation, name) is getattr(selection, name)
    assert set(delfsearch.evaluation.__all__) <= set(dir(delfsearch.evaluation))
    with pytest.raises(AttributeError, match="no attribute 'recall'"):
        _ = delfsearch.evaluation.recall


def test_metrics_do_not_import_torch():
    code = "import sys, delfsearch.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""GlobalIndex against a sort of all scores, computed one by one in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch.baselines import global_index
from delfsearch.baselines.global_index import GlobalIndex


def vectors(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    X = np.random.default_rng(seed).normal(size=(n, d))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def sorted_scores(X, ids, q, k, excluded=()):
    """The oracle: every score in float64, sorted by (-score, id)."""
    scores = [float(np.dot(x.astype(np.float64), q.astype(np.float64))) for x in X]
    rows = [(-s, int(i)) for s, i in zip(scores, ids) if i not in excluded]
    return sorted(rows)[:k]


@given(
    st.integers(1, 60),
    st.integers(1, 80),
    st.integers(0, 2**31),
    st.sampled_from([None, 2]),
)
@settings(max_examples=40, deadline=None)
def test_equals_a_sort_of_everything(n, k, seed, n_jobs):
    generator = np.random.default_rng(seed)
    # Whole numbers: products are exact, and many scores are equal.
    X = generator.integers(-1, 2, (n, 3)).astype(np.float32)
    Q = generator.integers(-1, 2, (5, 3)).astype(np.float32)
    ids = generator.permutation(3 * n)[:n]
    excluded = [generator.choice(ids, generator.integers(0, n)) for _ in Q]
    index = GlobalIndex(n_jobs=n_jobs).fit(X, ids=ids)
    scores, found = index.query(Q, k=k, exclude_ids=excluded)
    assert scores.shape == found.shape == (5, k)
    for i, q in enumerate(Q):
        expected = sorted_scores(X, ids, q, k, set(excluded[i].tolist()))
        m = len(expected)
        assert found[i, :m].tolist() == [number for _, number in expected]
        assert scores[i, :m].tolist() == [-s for s, _ in expected]
        assert (found[i, m:] == -1).all() and np.isneginf(scores[i, m:]).all()


def test_real_vectors_over_several_blocks(monkeypatch):
    monkeypatch.setattr(global_index, "_DATABASE_BLOCK", 128)
    monkeypatch.setattr(global_index, "_QUERY_BLOCK", 7)
    X, Q = vectors(1000), vectors(30, seed=1)
    X[500:600] = X[:100]  # equal vectors, in other blocks
    scores, ids = GlobalIndex(n_jobs=2).fit(X).query(Q, k=20)
    for i, q in enumerate(Q):
        expected = sorted_scores(X, range(1000), q, 20)
        assert ids[i].tolist() == [number for _, number in expected]
        np.testing.assert_allclose(scores[i], [-s for s, _ in expected], rtol=1e-6)


def test_answers_depend_on_neither_threads_nor_company():
    X, Q = vectors(3000, 64), vectors(150, 64, seed=1)
    scores, ids = GlobalIndex().fit(X).query(Q, k=50)
    for n_jobs in (2, 3, -1):
        other_scores, other_ids = GlobalIndex(n_jobs=n_jobs).fit(X).query(Q, k=50)
        assert other_scores.tobytes() == scores.tobytes()
        assert other_ids.tobytes() == ids.tobytes()
    alone, alone_ids = GlobalIndex().fit(X).query(Q[77:78], k=50)
    assert alone.tobytes() == scores[77:78].tobytes()
    assert alone_ids.tobytes() == ids[77:78].tobytes()


def test_order_of_fitting_does_not_matter():
    X, Q = vectors(50), vectors(4, seed=1)
    order = np.random.default_rng(0).permutation(50)
    direct = GlobalIndex().fit(X).query(Q, k=9)
    shuffled = GlobalIndex().fit(X[order], ids=order).query(Q, k=9)
    for a, b in zip(direct, shuffled):
        assert a.tobytes() == b.tobytes()


def test_query_expansion_by_hand():
    # The query's best answer is (0.8, 0.6); the average (0.9, 0.3), of length sqrt(0.9).
    X = np.array([[0.8, 0.6], [0.0, 1.0], [0.28, -0.96]], np.float32)
    q = np.array([[1.0, 0.0]], np.float32)
    index = GlobalIndex().fit(X)
    expanded = index.expand(q)
    np.testing.assert_allclose(expanded, [[0.9 / 0.9**0.5, 0.3 / 0.9**0.5]], rtol=1e-6)
    _, plain_ids = index.query(q, k=3)
    scores, ids = index.query(q, k=3, query_expansion=1)
    assert plain_ids.tolist() == [[0, 2, 1]]
    assert ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(scores[0], (X @ expanded[0])[[0, 1, 2]], rtol=1e-6)
    again = index.query(index.expand(q), k=3)
    assert again[0].tobytes() == scores.tobytes()
    # Left out of its own answers, the first cannot expand the query either.
    np.testing.assert_allclose(index.expand(q, exclude_ids=[[0]]), [[0.8, -0.6]], rtol=1e-6)


def test_nothing_left_to_expand_with():
    index = GlobalIndex().fit(np.array([[0.0, 2.0]], np.float32))
    q = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(index.expand(q, exclude_ids=[[0]]), [[0.6, 0.8]], rtol=1e-6)
    scores, ids = index.query(q, k=2, exclude_ids=[[0]], query_expansion=2)
    assert ids.tolist() == [[-1, -1]] and np.isneginf(scores).all()


def test_unknown_exclusions_exclude_nothing():
    index = GlobalIndex().fit(vectors(3), ids=[5, 7, 9])
    _, ids = index.query(vectors(1), k=3, exclude_ids=[[4, 6, 10, 2**40]])
    assert sorted(ids[0]) == [5, 7, 9]
    assert len(index) == 3 and len(GlobalIndex()) == 0


def test_no_query_has_no_answer():
    scores, ids = GlobalIndex().fit(vectors(3)).query(np.zeros((0, 16), np.float32), k=2)
    assert scores.shape == ids.shape == (0, 2)


def test_estimator():
    index = clone(GlobalIndex(n_jobs=2))
    assert index.get_params() == {"n_jobs": 2}
    with pytest.raises(NotFittedError):
        index.query(vectors(1))
    with pytest.raises(NotFittedError):
        index.expand(vectors(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.fit(np.zeros((0, 4))), "at least 1 row"),
        (lambda i: i.fit(np.full((2, 4), np.nan)), "finite"),
        (lambda i: i.fit(vectors(2), ids=[1, 1]), "distinct"),
        (lambda i: i.fit(vectors(2), ids=[-1, 1]), "at least 0"),
        (lambda i: i.fit(vectors(2), ids=[1]), "2 elements"),
        (lambda i: i.query(vectors(2, 5)), "16 columns"),
        (lambda i: i.query(vectors(2), k=0), "k must be at least 1"),
        (lambda i: i.query(vectors(2), exclude_ids=[[]]), "one entry per query"),
        (lambda i: i.query(vectors(2), query_expansion=-1), "query_expansion"),
        (lambda i: i.query(np.full((1, 16), np.inf)), "finite"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(GlobalIndex().fit(vectors(5)))

"""Discriminative whitening against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks

from delfsearch.baselines.whitening import DiscriminativeWhitening


@parametrize_with_checks([DiscriminativeWhitening(), DiscriminativeWhitening(1, normalize=False)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def scenes(n_scenes: int = 30, per_scene: int = 4, d: int = 6, seed: int = 0):
    """Rows that scatter around their scene much more in some directions than in others."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(n_scenes, d))
    noise = generator.normal(size=(n_scenes * per_scene, d)) * np.geomspace(0.01, 3.0, d)
    labels = np.repeat(np.arange(n_scenes), per_scene)
    return centres[labels] + noise, labels


def all_pairs(labels):
    n = len(labels)
    return np.array([(i, j) for i in range(n) for j in range(i + 1, n) if labels[i] == labels[j]])


@given(st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_differences_of_matching_rows_become_white(seed, k):
    X, labels = scenes(seed=seed)
    pairs = all_pairs(labels)
    whitening = DiscriminativeWhitening(k, shrinkage=0.0, normalize=False).fit(X, labels)
    Y = whitening.transform(X)
    difference = Y[pairs[:, 0]] - Y[pairs[:, 1]]
    np.testing.assert_allclose(difference.T @ difference / len(pairs), np.eye(k), atol=1e-8)
    assert whitening.n_pairs_ == len(pairs) == 30 * 6


def test_components_are_ordered_by_the_variance_that_remains():
    X, labels = scenes()
    Y = DiscriminativeWhitening(shrinkage=0.0, normalize=False).fit(X, labels).transform(X)
    moments = (Y**2).mean(axis=0)
    assert (np.diff(moments) <= 1e-9).all()
    # They are uncorrelated about the mean of the matching rows, here all of them.
    np.testing.assert_allclose(Y.T @ Y / len(Y), np.diag(moments), atol=1e-8)


def test_labels_and_pairs_say_the_same():
    X, labels = scenes()
    by_labels = DiscriminativeWhitening(3).fit(X, labels)
    by_pairs = DiscriminativeWhitening(3).fit(X, pairs=all_pairs(labels))
    np.testing.assert_allclose(by_labels.components_, by_pairs.components_, rtol=1e-8)
    np.testing.assert_allclose(by_labels.mean_, by_pairs.mean_)


def test_two_dimensions_by_hand():
    # Two pairs differ by (2, 0) and (0, 1): S = diag(2, 1/2), whitened by diag(1/sqrt 2, sqrt 2).
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
    fitted = DiscriminativeWhitening(shrinkage=0.0, normalize=False)
    fitted.fit(X, pairs=[[0, 1], [2, 3]])
    np.testing.assert_allclose(fitted.mean_, [0.0, 0.0])
    np.testing.assert_allclose(
        np.abs(fitted.components_ @ np.diag([2**0.5, 2**-0.5])).sum(axis=0), [1.0, 1.0]
    )


def test_noisy_directions_no_longer_decide():
    X, labels = scenes(seed=1)

    def right_first(rows):
        similarity = rows @ rows.T
        np.fill_diagonal(similarity, -np.inf)
        return np.mean(labels[similarity.argmax(axis=1)] == labels)

    normalized = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert right_first(DiscriminativeWhitening().fit_transform(X, labels)) > right_first(normalized)


def test_too_few_pairs_need_shrinkage():
    X, _ = scenes()
    pairs = [[0, 1], [4, 5]]
    with pytest.raises(ValueError, match="shrinkage"):
        DiscriminativeWhitening(shrinkage=0.0).fit(X, pairs=pairs)
    assert DiscriminativeWhitening(shrinkage=0.1).fit(X, pairs=pairs).components_.shape == (6, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "requires y"),
        ({"y": np.arange(120)}, "no two rows match"),
        ({"y": np.zeros(3)}, "one label per row"),
        ({"pairs": [[0, 500]]}, "rows of X"),
        ({"pairs": [[0.5, 1.0]]}, "integers"),
        ({"pairs": np.zeros((0, 2), int)}, "no two rows match"),
    ],
)
def test_bad_matches_are_refused(arguments, message):
    X, _ = scenes()
    with pytest.raises(ValueError, match=message):
        DiscriminativeWhitening().fit(X, **arguments)


def test_too_many_components_are_refused():
    X, labels = scenes()
    with pytest.raises(ValueError, match="at most n_features = 6"):
        DiscriminativeWhitening(7).fit(X, labels)

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from delfsearch import PcaReduction
from delfsearch.extraction import reduction


@parametrize_with_checks([PcaReduction(n_components=2), PcaReduction(n_components=2, whiten=True)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def rows(n=500, d=24, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) + 1.0


@pytest.mark.parametrize("whiten", [False, True])
def test_equals_scikit_learn_pca_on_normalised_rows(whiten, monkeypatch):
    monkeypatch.setattr(reduction, "_BLOCK_ROWS", 64)  # several blocks
    X = rows()
    ours = PcaReduction(7, whiten=whiten).fit(X)
    theirs = PCA(7, whiten=whiten, svd_solver="full").fit(normalize(X))
    signs = np.sign((ours.components_ * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.components_, theirs.components_ * signs[:, None], atol=1e-9)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(
        ours.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=1e-9
    )
    expected = normalize(theirs.transform(normalize(X))) * signs
    np.testing.assert_allclose(ours.transform(X), expected, atol=1e-9)
    np.testing.assert_allclose(ours.transform(X.astype(np.float32)), expected, atol=1e-4)


def test_blocks_equal_one_matrix():
    X = rows()
    whole = PcaReduction(5).fit(X)
    parts = PcaReduction(5).fit_blocks(iter([X[:1], X[1:200], X[200:]]))
    np.testing.assert_allclose(parts.components_, whole.components_, atol=1e-9)
    np.testing.assert_allclose(parts.mean_, whole.mean_, atol=1e-12)
    assert parts.n_samples_seen_ == len(X)


def test_sign_is_a_convention():
    components = PcaReduction(6).fit(rows()).components_
    assert (components[np.arange(6), np.abs(components).argmax(1)] > 0).all()


def test_rows_of_zeros_stay_finite_and_outputs_have_length_one():
    X = rows(50)
    X[3] = 0
    Y = PcaReduction(4, whiten=True).fit(X).transform(X)
    np.testing.assert_allclose(np.linalg.norm(Y, axis=1), 1.0, rtol=1e-12)
    constant = PcaReduction(2).fit(np.ones((10, 4)))
    assert np.isfinite(constant.transform(np.ones((3, 4)))).all()


def test_arrays_round_trip_and_truncate():
    X = rows().astype(np.float32)
    fitted = PcaReduction(8).fit(X)
    restored = PcaReduction.from_arrays(fitted.to_arrays())
    np.testing.assert_allclose(restored.transform(X), fitted.transform(X), atol=1e-5)
    few = PcaReduction.from_arrays(fitted.to_arrays(), 3)
    assert few.transform(X).shape == (len(X), 3)
    assert clone(few).get_params() == {"n_components": 3, "whiten": False}
    with pytest.raises(ValueError, match="at most 8"):
        PcaReduction.from_arrays(fitted.to_arrays(), 9)
    broken = fitted.to_arrays()
    broken["pca.mean"] = broken["pca.mean"][:-1]
    with pytest.raises(ValueError, match="disagree"):
        PcaReduction.from_arrays(broken)
    broken = fitted.to_arrays()
    broken["pca.explained_variance"] = broken["pca.explained_variance"][:-1]
    with pytest.raises(ValueError, match="explained_variance must have 8"):
        PcaReduction.from_arrays(broken)


def test_errors_name_the_remedy():
    with pytest.raises(NotFittedError):
        PcaReduction().transform(rows())
    with pytest.raises(ValueError, match=r"n_components must be at most .* 24"):
        PcaReduction(25).fit(rows())
    with pytest.raises(ValueError, match="at least two rows"):
        PcaReduction(2).fit_blocks(iter([]))
    with pytest.raises(ValueError, match="23 features"):
        PcaReduction(2).fit(rows()).transform(rows()[:, :23])
    for bad in (np.nan, np.inf):
        X = rows()
        X[2, 3] = bad
        with pytest.raises(ValueError):
            PcaReduction(2).fit(X)


def test_layouts_and_dtypes():
    X = rows().astype(np.float32)
    fitted = PcaReduction(4).fit(X)
    expected = fitted.transform(X)
    np.testing.assert_allclose(fitted.transform(np.asfortranarray(X)), expected, atol=1e-6)
    np.testing.assert_allclose(fitted.transform(np.repeat(X, 2, 0)[::2]), expected, atol=1e-6)
    assert expected.dtype == np.float32
    assert fitted.transform(X.astype(np.float64)).dtype == np.float64

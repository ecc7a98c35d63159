"""Product quantizers against NumPy: what codes stand for, what they lose, and bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks

from delfsearch.index.product_quantizers import (
    LocallyOptimizedPQ,
    OptimizedPQ,
    ProductQuantizer,
)

SMALL = {"n_subquantizers": 1, "bits": 4, "max_iter": 5}


def clustered(seed: int, n: int, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.linspace(2, 0.2, d)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rng.normal(size=(n, d)) * spread @ turn).astype(np.float32)


@parametrize_with_checks(
    [ProductQuantizer(**SMALL), OptimizedPQ(**SMALL), LocallyOptimizedPQ(n_lists=2, **SMALL)],
    # Codebooks need 2^bits rows.
    expected_failed_checks=lambda _: {
        "check_fit2d_1sample": "needs 2^bits rows",
    },
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_codes_are_the_nearest_centroids(bits, parts):
    X = clustered(0, 700)
    quantizer = ProductQuantizer(n_subquantizers=parts, bits=bits, max_iter=8).fit(X)
    books = quantizer.codebooks_
    assert books.shape == (parts, 8 // parts, 2**bits)
    codes = quantizer.transform(X)
    assert codes.shape == (700, parts) and codes.dtype == np.uint8
    for p in range(parts):
        part = X[:, p * (8 // parts) : (p + 1) * (8 // parts)]
        squared = ((part[:, :, None] - books[p][None]) ** 2).sum(1)
        chosen = squared[np.arange(700), codes[:, p]]
        np.testing.assert_allclose(chosen, squared.min(1), rtol=1e-4, atol=1e-6)
    decoded = quantizer.inverse_transform(codes)
    expected = np.concatenate([books[p][:, codes[:, p]].T for p in range(parts)], axis=1)
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)


def loss(quantizer, X, *cells) -> float:
    return float(((quantizer.inverse_transform(quantizer.transform(X), *cells) - X) ** 2).mean())


def test_each_refinement_loses_less():
    X = np.concatenate([clustered(s, 1500) + 6 * np.eye(8, dtype=np.float32)[s] for s in range(4)])
    options = {"n_subquantizers": 4, "bits": 4}
    plain = ProductQuantizer(**options).fit(X)
    turned = OptimizedPQ(**options).fit(X)
    local = LocallyOptimizedPQ(n_lists=4, min_codebook_rows=500, **options).fit(X)
    losses = loss(plain, X), loss(turned, X), loss(local, X, local.predict(X))
    assert losses[0] > losses[1] > losses[2]


def test_rotation_is_one():
    rotation = OptimizedPQ(n_subquantizers=4, bits=4).fit(clustered(1, 400)).rotation_
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_a_code_of_a_decoded_vector_is_the_code(seed, parts):
    rng = np.random.default_rng(seed)
    quantizer = ProductQuantizer(n_subquantizers=parts, bits=4, max_iter=3)
    quantizer.fit(rng.normal(size=(40, 2 * parts)).astype(np.float32))
    codes = rng.integers(0, 16, (30, parts)).astype(np.uint8)
    decoded = quantizer.inverse_transform(codes)
    again = quantizer.inverse_transform(quantizer.transform(decoded))
    np.testing.assert_array_equal(decoded, again)


@pytest.mark.parametrize("make", [ProductQuantizer, OptimizedPQ, LocallyOptimizedPQ])
def test_threads_seeds_and_pickles(make):
    X = clustered(2, 900)
    one = make(n_subquantizers=4, bits=4, n_jobs=1).fit(X)
    many = make(n_subquantizers=4, bits=4, n_jobs=3).fit(X)
    np.testing.assert_array_equal(one.transform(X), many.transform(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).transform(X), one.transform(X))
    other = make(n_subquantizers=4, bits=4, random_state=1).fit(X)
    assert (other.codebooks_ != one.codebooks_).any()


def test_awkward_data_is_quantized():
    same = np.full((50, 8), 3.0, np.float32)
    for make in (ProductQuantizer, OptimizedPQ):
        quantizer = make(n_subquantizers=2, bits=4).fit(same)
        np.testing.assert_allclose(quantizer.inverse_transform(quantizer.transform(same)), same)
    flat = clustered(3, 300)
    flat[:, 5] = 1.0  # a constant dimension
    quantizer = OptimizedPQ(n_subquantizers=2, bits=6).fit(flat)
    decoded = quantizer.inverse_transform(quantizer.transform(flat))
    assert np.abs(decoded[:, 5] - 1).max() < 1e-4
    local = LocallyOptimizedPQ(n_lists=100, n_subquantizers=2, bits=4).fit(flat[:60])
    assert len(local.cluster_centers_) == 60


@pytest.mark.parametrize(
    ("options", "rows", "error"),
    [
        ({"n_subquantizers": 3}, 100, "n_subquantizers must divide the dimension, 8; got 3"),
        ({"bits": 3, "n_subquantizers": 4}, 100, "bits must be at least 4; got 3"),
        ({"bits": 9, "n_subquantizers": 4}, 100, "bits must be at most 8; got 9"),
        ({"bits": 8, "n_subquantizers": 4}, 100, "at least 2.bits = 256 rows"),
        ({"n_subquantizers": 0}, 100, "n_subquantizers must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_learned(options, rows, error):
    with pytest.raises(ValueError, match=error):
        ProductQuantizer(**options).fit(clustered(4, rows))


def test_what_are_no_codes():
    local = LocallyOptimizedPQ(n_lists=3, n_subquantizers=2, bits=4).fit(clustered(5, 200))
    codes = local.transform(clustered(6, 5))
    with pytest.raises(ValueError, match="cells must be given"):
        local.inverse_transform(codes)
    with pytest.raises(ValueError, match=r"cells must be 0 \.\.\. 2"):
        local.inverse_transform(codes, [0, 1, 2, 3, 0])
    with pytest.raises(ValueError, match=r"codes must be below 2\^bits = 16; got 16"):
        local.inverse_transform(codes + np.uint8(16) - codes, [0] * 5)
    with pytest.raises(ValueError, match=r"codes must be a \(n, 2\) uint8 array"):
        local.inverse_transform(codes.astype(int), [0] * 5)

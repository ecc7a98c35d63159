"""Product quantizers against NumPy: what codes stand for, what they lose, and bad input."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from delfsearch import LocallyOptimizedPQ, OptimizedPQ, ProductQuantizer

SMALL = {"n_subquantizers": 1, "bits": 4, "max_iter": 5}
ALL = [ProductQuantizer, OptimizedPQ, LocallyOptimizedPQ]
# They fit fewer than the 2^4 rows that the least number of bits needs; what they look for is looked
# for below with more rows.
TOO_FEW_ROWS = (
    "check_fit2d_1feature",
    "check_estimators_nan_inf",
    "check_n_features_in_after_fitting",
)


def clustered(seed: int, n: int, d: int = 8) -> np.ndarray:
    """Rows of unequal variances, turned."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(2, 0.2, d)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rng.normal(size=(n, d)) * spread @ turn).astype(np.float32)


def cells_of(quantizer, X) -> tuple:
    return (quantizer.predict(X),) if hasattr(quantizer, "predict") else ()


def decoded_from_arrays(quantizer, codes, cells=None) -> np.ndarray:
    """What codes stand for, in NumPy and double precision, from the learned arrays alone."""
    arrays = {name: np.asarray(a, np.float64) for name, a in quantizer._arrays.items()}
    rotation_of, codebook_of = (quantizer._arrays[name] for name in ("rotation_of", "codebook_of"))
    d = arrays["coarse"].shape[1]
    rows = []
    for code, cell in zip(codes, np.zeros(len(codes), int) if cells is None else cells):
        book = arrays["codebooks"][codebook_of[cell]]
        y = np.concatenate([book[p][:, number] for p, number in enumerate(code)])
        if rotation_of[cell] >= 0:
            y = arrays["rotations"][rotation_of[cell]][:, :d] @ y
        rows.append(arrays["coarse"][cell] + y)
    return np.array(rows)


@parametrize_with_checks(
    [ProductQuantizer(**SMALL), OptimizedPQ(**SMALL), LocallyOptimizedPQ(n_lists=2, **SMALL)],
    expected_failed_checks=lambda _: dict.fromkeys(TOO_FEW_ROWS, "needs 2^bits rows"),
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("make", ALL)
def test_what_scikit_learn_checks_with_too_few_rows(make):
    X = clustered(0, 60)
    quantizer = make(**SMALL)
    assert not hasattr(quantizer, "n_features_in_")
    assert quantizer.fit(X).n_features_in_ == 8
    assert len(quantizer.get_feature_names_out()) == 1
    with pytest.raises(ValueError, match="X has 1 features, but"):
        quantizer.transform(X[:, :1])
    assert make(**SMALL).fit(X[:, :1]).transform(X[:, :1]).shape == (60, 1)
    for bad, message in (
        (np.nan, "NaN"),
        (np.inf, "infinity"),
        (2e16, r"must lie within \+-1e\+16"),
    ):
        broken = X.copy()
        broken[7, 3] = bad
        for call in (make(**SMALL).fit, quantizer.transform):
            with pytest.raises(ValueError, match=message):
                call(broken)
        with pytest.raises(ValueError, match="X must"):
            quantizer.squared_distances(broken, quantizer.transform(X), *cells_of(quantizer, X))


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_codes_are_the_nearest_centroids(bits, parts):
    X = clustered(0, 700)
    quantizer = ProductQuantizer(n_subquantizers=parts, bits=bits, max_iter=8).fit(X)
    books = quantizer.codebooks_
    assert books.shape == (parts, 8 // parts, 2**bits) and books.dtype == np.float32
    assert 1 <= quantizer.n_iter_ <= 8
    codes = quantizer.transform(X)
    assert codes.shape == (700, parts) and codes.dtype == np.uint8
    for p in range(parts):
        part = X[:, p * (8 // parts) : (p + 1) * (8 // parts)]
        squared = ((part[:, :, None] - books[p][None]) ** 2).sum(1)
        chosen = squared[np.arange(700), codes[:, p]]
        np.testing.assert_allclose(chosen, squared.min(1), rtol=1e-4, atol=1e-6)


def test_codes_of_a_rotation_are_those_of_turned_rows():
    X = clustered(1, 900) + 5
    quantizer = OptimizedPQ(n_subquantizers=2, bits=5).fit(X)
    np.testing.assert_allclose(quantizer.mean_, X.mean(0, dtype=np.float64), rtol=1e-6)
    assert quantizer.mean_.dtype == quantizer.rotation_.dtype == np.float32
    np.testing.assert_allclose(quantizer.rotation_ @ quantizer.rotation_.T, np.eye(8), atol=1e-5)
    turned = (X - quantizer.mean_) @ quantizer.rotation_.T
    codes = quantizer.transform(X)
    for p in range(2):
        squared = ((turned[:, 4 * p : 4 * p + 4, None] - quantizer.codebooks_[p]) ** 2).sum(1)
        chosen = squared[np.arange(900), codes[:, p]]
        np.testing.assert_allclose(chosen, squared.min(1), rtol=1e-3, atol=1e-5)


def test_cells_are_the_nearest_centres():
    X = clustered(2, 500)
    quantizer = LocallyOptimizedPQ(n_lists=7, n_subquantizers=2, bits=4).fit(X)
    centers, cells = quantizer.cluster_centers_, quantizer.predict(X)
    assert centers.shape == (7, 8) and centers.dtype == np.float32 and cells.dtype == np.int64
    squared = ((X[:, None] - centers[None]) ** 2).sum(2)
    np.testing.assert_allclose(squared[np.arange(500), cells], squared.min(1), rtol=1e-4)


@pytest.mark.parametrize("make", ALL)
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 4), bits=st.integers(4, 8))
@settings(max_examples=15, deadline=None)
def test_codes_stand_for_vectors_and_distances_are_theirs(make, seed, parts, bits):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(2**bits + 40, 3 * parts)).astype(np.float32) + rng.normal()
    few_cells = {"n_lists": 3, "min_rotation_rows": 10, "min_codebook_rows": 100}
    quantizer = make(
        n_subquantizers=parts,
        bits=bits,
        max_iter=3,
        **(few_cells if make is LocallyOptimizedPQ else {}),
    ).fit(X)
    codes = rng.integers(0, 2**bits, (30, parts)).astype(np.uint8)
    cells = (rng.integers(0, 3, 30),) if make is LocallyOptimizedPQ else ()

    decoded = quantizer.inverse_transform(codes, *cells)
    assert decoded.shape == (30, 3 * parts) and decoded.dtype == np.float32
    expected = decoded_from_arrays(quantizer, codes, *cells)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)

    squared = quantizer.squared_distances(X[:20], codes, *cells)
    assert squared.shape == (20, 30) and squared.dtype == np.float32
    plain = ((X[:20, None].astype(np.float64) - expected[None]) ** 2).sum(2)
    np.testing.assert_allclose(squared, plain, rtol=1e-4, atol=1e-4)

    blocks = quantizer.pack(codes)
    assert blocks.shape == (1, 8 * parts * bits) and blocks.dtype == np.uint8
    np.testing.assert_array_equal(quantizer.unpack(blocks, 30), codes)


@pytest.mark.parametrize("make", [ProductQuantizer, OptimizedPQ])
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_decoded_vector_is_coded_as_itself(make, seed, parts):
    rng = np.random.default_rng(seed)
    quantizer = make(n_subquantizers=parts, bits=4, max_iter=3)
    quantizer.fit(rng.normal(size=(40, 2 * parts)).astype(np.float32))
    codes = rng.integers(0, 16, (30, parts)).astype(np.uint8)
    decoded = quantizer.inverse_transform(codes)
    again = quantizer.inverse_transform(quantizer.transform(decoded))
    # A centroid's number may differ where two centroids are equal, what it stands for may not.
    np.testing.assert_array_equal(decoded, again)


def loss(quantizer, X) -> float:
    decoded = quantizer.inverse_transform(quantizer.transform(X), *cells_of(quantizer, X))
    return float(((decoded - X) ** 2).sum(1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_each_refinement_loses_less(seed):
    options = {"n_subquantizers": 4, "bits": 4}
    X = clustered(seed, 3000)
    losses = [loss(ProductQuantizer(**options).fit(X), X)]
    losses += [loss(OptimizedPQ(n_rounds=n, **options).fit(X), X) for n in (0, 1, 4, 16)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 1.05 * losses[-1]
    # Several clouds, each turned another way.
    X = np.concatenate([clustered(s, 1500) + 6 * np.eye(8, dtype=np.float32)[s] for s in range(4)])
    local = {"n_lists": 4, "random_state": seed, **options}
    turned = loss(OptimizedPQ(**options).fit(X), X)
    shared = loss(LocallyOptimizedPQ(min_codebook_rows=10**6, **local).fit(X), X)
    own = loss(LocallyOptimizedPQ(min_codebook_rows=500, **local).fit(X), X)
    assert turned > shared > own


def test_cells_with_few_rows_share():
    X = clustered(3, 600)
    options = {"n_lists": 3, "n_subquantizers": 2, "bits": 4}
    sizes = np.bincount(LocallyOptimizedPQ(**options).fit(X).predict(X), minlength=3)
    quantizer = LocallyOptimizedPQ(
        min_rotation_rows=int(np.sort(sizes)[1]), min_codebook_rows=int(sizes.max()), **options
    ).fit(X)
    assert len(quantizer._arrays["rotations"]) == 1 + (sizes >= np.sort(sizes)[1]).sum()
    assert len(quantizer._arrays["codebooks"]) == 1 + (sizes == sizes.max()).sum()


@pytest.mark.parametrize("make", ALL)
def test_threads_seeds_clones_and_pickles(make):
    X = clustered(2, 900)
    one = make(n_subquantizers=4, bits=4, n_jobs=1).fit(X)
    codes = one.transform(X)
    squared = one.squared_distances(X[:30], codes, *cells_of(one, X))
    for same in (
        clone(one).fit(X),
        clone(one).set_params(n_jobs=3).fit(X),
        pickle.loads(pickle.dumps(one)),
        one.set_params(n_jobs=2),
    ):
        assert same.get_params().keys() == one.get_params().keys()
        np.testing.assert_array_equal(same.codebooks_, one.codebooks_)
        np.testing.assert_array_equal(same.transform(X), codes)
        np.testing.assert_array_equal(
            same.squared_distances(X[:30], codes, *cells_of(same, X)), squared
        )
    other = clone(one).set_params(random_state=1).fit(X)
    assert (other.codebooks_ != one.codebooks_).any()
    first, second = (
        clone(one).set_params(random_state=np.random.RandomState(4)).fit(X) for _ in range(2)
    )
    np.testing.assert_array_equal(first.codebooks_, second.codebooks_)


def test_parameters_set_after_fit_wait_for_the_next():
    X = clustered(2, 300)
    quantizer = ProductQuantizer(n_subquantizers=4, bits=4).fit(X)
    codes = quantizer.transform(X)
    quantizer.set_params(n_subquantizers=2, bits=6)
    quantizer = pickle.loads(pickle.dumps(quantizer))
    np.testing.assert_array_equal(quantizer.transform(X), codes)
    np.testing.assert_array_equal(quantizer.unpack(quantizer.pack(codes), 300), codes)
    assert quantizer.fit(X).transform(X).shape == (300, 2)


PRINTS_A_DIGEST = """
import hashlib, sys
import numpy as np
from delfsearch import LocallyOptimizedPQ, OptimizedPQ, ProductQuantizer

X = np.random.default_rng(0).normal(size=(2500, 12)).astype(np.float32)
digest = hashlib.sha256()
for make in (ProductQuantizer, OptimizedPQ, LocallyOptimizedPQ):
    quantizer = make(n_subquantizers=3, bits=5).fit(X)
    codes = quantizer.transform(X)
    cells = [quantizer.predict(X)] if hasattr(quantizer, "predict") else []
    digest.update(quantizer.codebooks_.tobytes() + codes.tobytes())
    digest.update(quantizer.squared_distances(X[:20], codes, *cells).tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bytes():
    def digest(simd: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS_A_DIGEST],
            env={**os.environ, "DELFSEARCH_SIMD": simd},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert digest("scalar") == digest("")  # empty: the best that the processor has


@pytest.mark.parametrize("make", ALL)
def test_fewer_distinct_rows_than_centroids_are_coded_exactly(make):
    distinct = clustered(4, 5)
    X = np.repeat(distinct, 12, axis=0)
    quantizer = make(n_subquantizers=2, bits=5).fit(X)
    decoded = quantizer.inverse_transform(quantizer.transform(X), *cells_of(quantizer, X))
    np.testing.assert_allclose(decoded, X, atol=1e-5)
    same = np.full((50, 8), 3.0, np.float32)
    quantizer = make(n_subquantizers=2, bits=4).fit(same)
    decoded = quantizer.inverse_transform(quantizer.transform(same), *cells_of(quantizer, same))
    np.testing.assert_allclose(decoded, same, rtol=1e-6)


def test_rare_rows_get_the_centroids_that_copies_leave_empty():
    # Any centroid among the copies beyond the first is one too many.
    X = np.zeros((5000, 2), np.float32)
    X[::400] = np.arange(1, 14)[:, None] * np.float32([10, -3])
    quantizer = ProductQuantizer(n_subquantizers=1, bits=4).fit(X)
    assert loss(quantizer, X) == 0.0


def test_constant_dimensions_stay_constant():
    flat = clustered(3, 300)
    flat[:, 5] = 1.0
    for make in (ProductQuantizer, OptimizedPQ):
        quantizer = make(n_subquantizers=2, bits=6).fit(flat)
        decoded = quantizer.inverse_transform(quantizer.transform(flat))
        assert np.abs(decoded[:, 5] - 1).max() < 1e-4


def test_a_far_origin_costs_no_digits():
    X = clustered(5, 800)
    near, far = (OptimizedPQ(n_subquantizers=4, bits=5).fit(Y) for Y in (X, X + 1000))
    assert loss(far, X + 1000) == pytest.approx(loss(near, X), rel=0.05)


def test_no_more_cells_than_rows():
    assert (
        len(LocallyOptimizedPQ(n_lists=100, **SMALL).fit(clustered(3, 60)).cluster_centers_) == 60
    )


@pytest.mark.parametrize(
    ("options", "rows", "error"),
    [
        (
            {"n_subquantizers": 3},
            100,
            "n_subquantizers must divide the dimension, 8; got 3. Choose",
        ),
        ({"n_subquantizers": 16}, 100, "n_subquantizers must divide the dimension, 8; got 16"),
        ({"n_subquantizers": 0}, 100, "n_subquantizers must be at least 1; got 0"),
        ({"bits": 3}, 100, "bits must be at least 4; got 3"),
        ({"bits": 9}, 100, "bits must be at most 8; got 9"),
        ({"bits": 8}, 255, r"at least 2\^bits = 256 rows .* got n_samples = 255. .* or fewer bits"),
        ({"bits": 4}, 15, r"at least 2\^bits = 16 rows .* got n_samples = 15. Give more rows$"),
        ({"max_iter": 0}, 100, "max_iter must be at least 1; got 0"),
        ({"random_state": -1}, 100, "random_state must be at least 0; got -1"),
        ({"n_jobs": 0}, 100, "n_jobs must be .*; got 0"),
    ],
)
@pytest.mark.parametrize("make", ALL)
def test_what_cannot_be_learned(make, options, rows, error):
    quantizer = make(**{"n_subquantizers": 4, **options})
    with pytest.raises(ValueError, match=error):
        quantizer.fit(clustered(4, rows))
    with pytest.raises(NotFittedError):
        quantizer.transform(clustered(4, 5))


@pytest.mark.parametrize(
    ("make", "options", "error"),
    [
        (OptimizedPQ, {"n_rounds": -1}, "n_rounds must be at least 0; got -1"),
        (LocallyOptimizedPQ, {"n_lists": 0}, "n_lists must be at least 1; got 0"),
        (LocallyOptimizedPQ, {"min_rotation_rows": 0}, "min_rotation_rows must be at least 1"),
        (LocallyOptimizedPQ, {"min_codebook_rows": 0}, "min_codebook_rows must be at least 1"),
    ],
)
def test_parameters_of_their_own_are_checked(make, options, error):
    with pytest.raises(ValueError, match=error):
        make(n_subquantizers=2, bits=4, **options).fit(clustered(4, 50))
    with pytest.raises(TypeError, match=f"{next(iter(options))} must be an integer"):
        make(n_subquantizers=2, bits=4, **dict.fromkeys(options, 1.5)).fit(clustered(4, 50))


def test_what_are_no_codes():
    local = LocallyOptimizedPQ(n_lists=3, n_subquantizers=2, bits=4).fit(clustered(5, 200))
    X = clustered(6, 5)
    codes = local.transform(X)
    for call in (local.inverse_transform, lambda *a: local.squared_distances(X, *a)):
        with pytest.raises(ValueError, match=r"cells must be given, .* Pass what predict"):
            call(codes)
        with pytest.raises(ValueError, match=r"cells must lie in 0 \.\.\. 2; got 0 \.\.\. 3"):
            call(codes, [0, 1, 2, 3, 0])
        with pytest.raises(ValueError, match=r"cells must lie in 0 \.\.\. 2; got -1"):
            call(codes, [0, 1, 2, -1, 0])
        with pytest.raises(ValueError, match="cells must have 5 elements; got 4"):
            call(codes, [0] * 4)
        with pytest.raises(ValueError, match=r"codes must be below 2\^bits = 16; got 16"):
            call(np.full_like(codes, 16), [0] * 5)
        with pytest.raises(ValueError, match=r"codes must be a \(n, 2\) uint8 array"):
            call(codes.astype(int), [0] * 5)
        with pytest.raises(ValueError, match=r"codes must be a \(n, 2\) .* \(5, 1\)"):
            call(codes[:, :1], [0] * 5)
    with pytest.raises(ValueError, match=r"X must have 8 columns .* got 7"):
        local.squared_distances(X[:, :7], codes, [0] * 5)
    assert local.squared_distances(X[:0], codes, [0] * 5).shape == (0, 5)
    assert local.squared_distances(X, codes[:0], []).shape == (5, 0)


def test_what_are_no_blocks():
    quantizer = ProductQuantizer(n_subquantizers=4, bits=5).fit(clustered(5, 200))
    for n in (0, 1, 63, 64, 65, 128):
        codes = np.random.default_rng(n).integers(0, 32, (n, 4)).astype(np.uint8)
        blocks = quantizer.pack(codes)
        assert blocks.shape == (-(-n // 64), 160)
        np.testing.assert_array_equal(quantizer.unpack(blocks, n), codes)
    with pytest.raises(ValueError, match="n must be at most 128; got 129"):
        quantizer.unpack(blocks, 129)
    with pytest.raises(ValueError, match=r"blocks must be a \(n, 160\) uint8 array"):
        quantizer.unpack(blocks[:, :-1], 10)
    with pytest.raises(NotFittedError):
        ProductQuantizer().unpack(blocks, 10)


@pytest.mark.parametrize("cls", [ProductQuantizer, OptimizedPQ, LocallyOptimizedPQ])
def test_mini_batches_learn_nearly_as_much(cls):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 8))
    X = (centres[rng.integers(40, size=4000)] + rng.normal(0, 0.2, (4000, 8))).astype(np.float32)
    options = {"n_subquantizers": 4, "bits": 4, "random_state": 0}

    def error(**more):
        quantizer = cls(**options, **more).fit(X)
        cells = [quantizer.predict(X)] if cls is LocallyOptimizedPQ else []
        return float(
            ((quantizer.inverse_transform(quantizer.transform(X), *cells) - X) ** 2).mean()
        )

    assert error(batch_size=0) == error() != error(batch_size=500)
    assert error(batch_size=500) == error(batch_size=500, n_jobs=2) < 1.3 * error()
    with pytest.raises(ValueError, match="batch_size must be at least 0; got -1"):
        cls(batch_size=-1).fit(X)

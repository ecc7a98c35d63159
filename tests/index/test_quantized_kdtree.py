"""QuantizedKDTree beside a NumPy oracle of its own definition of the distance, bit for bit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from descriptor_mixture import mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from delfsearch import _core
from delfsearch.errors import IndexFormatError
from delfsearch.index.quantized_kdtree import QuantizedKDTree
from delfsearch.index.uniform_quantizer import UniformQuantizer


def oracle_distances(quantizer: UniformQuantizer, codes: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The definition at the top of kdtree.hpp, one query, in its own words."""

    def in_order(values: np.ndarray) -> np.ndarray:
        return np.cumsum(values, axis=-1)[..., -1]  # one after the other, unlike np.sum

    lower, step = quantizer.lower.astype(np.float64), quantizer.step.astype(np.float64)
    r = q.astype(np.float64) - (lower + 128.0 * step)
    v = r * step
    unit = max(np.abs(v).max() / 32512.0, in_order(np.abs(v)) / 8388608.0)
    V = np.rint(v / unit).astype(np.int64) if unit > 0 else np.zeros(len(v), np.int64)
    centred = codes.astype(np.int64) - 128
    norm = in_order((step * centred) ** 2).astype(np.float32)
    dot = (centred @ V).astype(np.float32)
    sum_r2 = in_order(r * r).astype(np.float32)
    return np.maximum((norm - np.float32(2 * unit) * dot) + sum_r2, np.float32(0))


def oracle(quantizer, codes, Q, k, candidates=None):
    """Brute force, ordered by (distance, id), padded; candidates: ids to look at."""
    distances = np.full((len(Q), k), np.inf, np.float32)
    ids = np.full((len(Q), k), -1, np.int64)
    for i, q in enumerate(Q):
        D = oracle_distances(quantizer, codes, q)
        rows = np.arange(len(codes)) if candidates is None else np.sort(candidates[i])
        best = rows[np.argsort(D[rows], kind="stable")][:k]
        distances[i, : len(best)] = D[best]
        ids[i, : len(best)] = best
    return distances, ids


def assert_same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[0].tobytes() == expected[0].tobytes()


@parametrize_with_checks([QuantizedKDTree()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("d", [1, 2, 3, 17, 40, 128, 1024])
def test_all_leaves_are_brute_force_on_the_codes(d):
    X = mixture(700, d)
    tree = QuantizedKDTree(leaf_size=48).fit(X)
    Q = np.concatenate([mixture(20, d, seed=1), X[:5]])
    found = tree.query(Q, k=30, max_leaves=tree.n_leaves_)
    assert_same(found, oracle(tree.quantizer_, tree.codes(), Q, 30))
    decoded = tree.quantizer_.decode(tree.codes()).astype(np.float64)
    plain = ((Q[:, None].astype(np.float64) - decoded[found[1]]) ** 2).sum(-1)
    # The query's 16 bits are of the whole range: errors are relative to that, not to D.
    whole = ((128.0 * tree.quantizer_.step.astype(np.float64)) ** 2).sum()
    np.testing.assert_allclose(found[0], plain, rtol=1e-4, atol=2e-4 * whole)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    d=st.integers(1, 20),
    k=st.integers(1, 500),
    leaf_size=st.sampled_from([1, 2, 5, 16, 33, 64, 1000]),
    max_leaves=st.integers(1, 40),
    distinct=st.sampled_from([1, 3, 1000]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_what_is_visited_is_ordered_by_distance_and_id(
    n, d, k, leaf_size, max_leaves, distinct, scale, seed
):
    X = mixture(min(n, distinct), d, seed)[np.arange(n) % distinct % n] * np.float32(scale)
    X[:, d // 2] = 7  # a constant dimension
    tree = QuantizedKDTree(leaf_size=leaf_size).fit(X)
    Q = mixture(4, d, seed + 1) * np.float32(scale)
    distances, ids = tree.query(Q, k=k, max_leaves=max_leaves)
    codes = tree.codes()
    np.testing.assert_array_equal(codes, tree.quantizer_.quantize(X))
    visited = min(n, min(max_leaves, tree.n_leaves_) * tree.leaf_size_)
    for i in range(len(Q)):
        found = ids[i][ids[i] >= 0]
        assert len(found) == len(set(found))
        # The last leaf may hold fewer than leaf_size rows.
        assert min(k, visited) - tree.leaf_size_ < len(found) <= min(k, visited)
        expected = oracle(tree.quantizer_, codes, Q[i : i + 1], k, [found])
        assert_same((distances[i : i + 1], ids[i : i + 1]), expected)
    everything = tree.query(Q, k=k, max_leaves=tree.n_leaves_)
    assert_same(everything, oracle(tree.quantizer_, codes, Q, k))


@pytest.mark.parametrize("leaf_size", [48, 64, 10])
def test_visits_the_leaves_whose_mean_is_nearest(leaf_size):
    X = mixture(3000, 12)
    tree = QuantizedKDTree(leaf_size=leaf_size).fit(X)
    Q = mixture(40, 12, seed=3)
    packed = tree.arrays()["ids"].reshape(len(X), 3).astype(np.int64)
    order = packed @ [1, 1 << 8, 1 << 16]
    leaf_ids = [order[at : at + leaf_size] for at in range(0, len(X), leaf_size)]
    codes, quantizer = tree.codes(), tree.quantizer_
    means = np.array([np.floor(codes[ids].mean(0) + 0.5) for ids in leaf_ids]).astype(np.uint8)
    step = quantizer.step.astype(np.float64)
    for T in (1, 3, 20):
        candidates = []
        for q in Q:
            v = (q - quantizer.lower - 128.0 * step) * step
            unit = max(np.abs(v).max() / 32512.0, np.cumsum(np.abs(v))[-1] / 8388608.0)
            high = (np.rint(v / unit).astype(np.int64) + 128) >> 8
            centred = means.astype(np.int64) - 128
            norm = np.cumsum((step * centred) ** 2, 1)[:, -1].astype(np.float32)
            score = norm - np.float32(512 * unit) * (centred @ high).astype(np.float32)
            best = np.argsort(score, kind="stable")[:T]
            candidates.append(np.concatenate([leaf_ids[leaf] for leaf in best]))
        found = tree.query(Q, k=25, max_leaves=T)
        assert_same(found, oracle(quantizer, codes, Q, 25, candidates))


def test_masses_of_duplicates_are_decided_by_id():
    X = np.repeat(mixture(3, 8), 2000, axis=0)[np.random.default_rng(0).permutation(6000)]
    tree = QuantizedKDTree(leaf_size=32).fit(X)
    Q = X[:40]
    for T in (5, 60, tree.n_leaves_):
        distances, ids = tree.query(Q, k=70, max_leaves=T)
        assert (np.diff(ids, axis=1)[np.diff(distances, axis=1) == 0] > 0).all()
    assert_same((distances, ids), oracle(tree.quantizer_, tree.codes(), Q, 70))


def test_constant_data_and_one_row():
    tree = QuantizedKDTree().fit(np.full((100, 5), 3.0))
    distances, ids = tree.query(np.full((1, 5), 3.0), k=4)
    assert (distances == 0).all()
    assert ids.tolist() == [[0, 1, 2, 3]]
    distances, ids = QuantizedKDTree().fit(np.ones((1, 3))).query(np.zeros((2, 3)), k=3)
    assert ids.tolist() == [[0, -1, -1]] * 2
    np.testing.assert_allclose(distances, [[3, np.inf, np.inf]] * 2)


@pytest.mark.parametrize("splits", ["means", "axis"])
def test_recall_rises_with_leaves_and_reaches_the_codes_own(splits):
    X, Q = mixture(8000, 24), mixture(300, 24, seed=0)[:300] + np.float32(0.02)
    squared = (X.astype(np.float64) ** 2).sum(-1) - 2 * Q.astype(np.float64) @ X.T
    exact = np.argpartition(squared, 20, axis=1)[:, :20]
    tree = QuantizedKDTree(leaf_size=32, splits=splits).fit(X)
    of_codes = tree.query(Q, k=20, max_leaves=tree.n_leaves_)[1]
    recalls, of_floats = [], []
    for T in (1, 2, 4, 8, 16, 32, 64, 128, tree.n_leaves_):
        ids = tree.query(Q, k=20, max_leaves=T)[1]
        recalls.append(np.mean([len(set(a) & set(b)) / 20 for a, b in zip(ids, of_codes)]))
        of_floats.append(np.mean([len(set(a) & set(b)) / 20 for a, b in zip(ids, exact)]))
    assert (np.diff(recalls) >= 0).all() and recalls[-1] == 1
    # Beside float search, quantization may exchange one of the last neighbours for another.
    assert (np.diff(of_floats) >= -0.001).all()
    assert of_floats[0] > 0.2 and of_floats[-1] > 0.97


@pytest.mark.parametrize("max_leaves", [7, 10**9])
def test_results_do_not_depend_on_threads_or_batches(max_leaves):
    X, Q = mixture(5000, 40), mixture(700, 40, seed=9)
    one = QuantizedKDTree(leaf_size=32, n_jobs=1).fit(X)
    three = QuantizedKDTree(leaf_size=32, n_jobs=3).fit(X)
    for name, array in one.arrays().items():
        assert array.tobytes() == three.arrays()[name].tobytes(), name
    expected = one.query(Q, max_leaves=max_leaves)
    assert_same(three.query(Q, max_leaves=max_leaves), expected)
    singly = [one.query(q[None], max_leaves=max_leaves) for q in Q[:50]]
    assert_same(
        (np.concatenate([d for d, _ in singly]), np.concatenate([i for _, i in singly])),
        (expected[0][:50], expected[1][:50]),
    )
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: one.query(Q, max_leaves=max_leaves), range(8)):
            assert_same(found, expected)


# Of the core alone: importing scikit-learn would take most of the time, once per instruction set.
_FINGERPRINT = """
import hashlib
import numpy as np
from delfsearch import _core
hash = hashlib.sha256()
rng = np.random.default_rng(5)
for d, leaf_size, axis in (
    (40, 64, False), (40, 48, True), (40, 20, False), (7, 16, False), (130, 33, False),
    (128, 64, False),
):
    X = (rng.normal(size=(2500, d)) / np.sqrt(1 + np.arange(d))).astype(np.float32)
    X[::5] = X[0]
    quantizer = _core.fit_quantizer(X, 0.9999)
    codes = _core.quantize(*quantizer, X)
    arrays = _core.build_kdtree(*quantizer, codes, leaf_size, axis, 2, 1)
    tree = _core.KdTreeView(len(X), leaf_size, *quantizer, *arrays, check=True)
    Q = np.concatenate([X[:150] + np.float32(0.05), X[:20], 100 * X[20:40]])
    for array in (*quantizer, codes, *arrays):
        hash.update(array.tobytes())
    for k, T in ((1, 1), (64, 5), (64, 30), (300, 10**6)):
        for array in tree.search(Q, k, T, 1):
            hash.update(array.tobytes())
print(_core.simd(), hash.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bytes():
    digests = {}
    for simd in dict.fromkeys(["scalar", "avx2", "avx512", "amx", "neon", _core.simd()]):
        environment = {**os.environ, "DELFSEARCH_SIMD": simd}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-c", _FINGERPRINT], env=environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            name, digest = done.stdout.split()
            assert name == simd
            digests[name] = digest
        else:
            assert "DELFSEARCH_SIMD must be" in done.stderr, done.stderr
    assert {"scalar", _core.simd()} <= set(digests)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize(
    "variant",
    [
        lambda Q: Q.astype(np.float64),
        lambda Q: np.asfortranarray(Q),
        lambda Q: np.repeat(Q, 2, axis=0)[::2],
        lambda Q: np.repeat(Q, 2, axis=1)[:, ::2],
        lambda Q: Q.tolist(),
        lambda Q: Q[::-1][::-1],
    ],
)
def test_any_layout_of_the_same_numbers_gives_the_same_answer(variant):
    X, Q = mixture(300, 6), mixture(9, 6, seed=2)
    expected = QuantizedKDTree(leaf_size=16).fit(X).query(Q, k=5, max_leaves=3)
    tree = QuantizedKDTree(leaf_size=16).fit(variant(X))
    assert_same(tree.query(variant(Q), k=5, max_leaves=3), expected)


def test_more_leaves_than_any_integer_holds_are_all_leaves():
    tree = QuantizedKDTree(leaf_size=8).fit(mixture(60, 6))
    Q = mixture(3, 6, seed=2)
    assert_same(tree.query(Q, k=99, max_leaves=2**80), tree.query(Q, k=99, max_leaves=8))


def test_codes_of_some_rows():
    X = mixture(700, 10)
    tree = QuantizedKDTree(leaf_size=16).fit(X)
    codes = tree.quantizer_.quantize(X)
    for start, stop in ((0, 700), (0, 1), (699, 700), (123, 456), (700, 700), (5, 5)):
        np.testing.assert_array_equal(tree.codes(start, stop), codes[start:stop])
    np.testing.assert_array_equal(tree.codes(690), codes[690:])
    for start, stop in ((0, 701), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=r"start|stop"):
            tree.codes(start, stop)


def test_no_queries_give_empty_results():
    distances, ids = QuantizedKDTree().fit(mixture(50, 6)).query(np.zeros((0, 6)), k=5)
    assert distances.shape == ids.shape == (0, 5)
    assert distances.dtype == np.float32 and ids.dtype == np.int64


@pytest.mark.parametrize(
    ("Q", "options", "message"),
    [
        (np.zeros((2, 5)), {}, "6"),
        (np.zeros(6), {}, "2-D"),
        (np.full((1, 6), np.nan), {}, "finite"),
        (np.full((1, 6), np.inf), {}, "finite"),
        (np.full((1, 6), 1e17), {}, "Rescale"),
        (np.array([["a"] * 6]), {}, "numeric"),
        (np.zeros((1, 6)), {"k": 0}, "k must be at least 1"),
        (np.zeros((1, 6)), {"max_leaves": 0}, "max_leaves must be at least 1"),
        # Two rows of 2**63 neighbours each would wrap round to none.
        (np.zeros((2, 6)), {"k": 2**63}, "k must be at most"),
        (np.zeros((2, 6)), {"k": 2**70}, "k must be at most"),
    ],
)
def test_bad_queries_are_refused(Q, options, message):
    tree = QuantizedKDTree().fit(mixture(50, 6))
    with pytest.raises(ValueError, match=message):
        tree.query(Q, **options)


@pytest.mark.parametrize(
    ("X", "options"),
    [
        (np.zeros((0, 6)), {}),
        (np.full((3, 6), np.nan), {}),
        (np.full((3, 6), -1e17), {}),
        (np.zeros((3, 6)), {"leaf_size": 0}),
        (np.zeros((3, 6)), {"max_leaves": 0}),
        (np.zeros((3, 6)), {"clip_quantile": 0.0}),
        (np.zeros((3, 6)), {"clip_quantile": 1.1}),
        (np.zeros((3, 6)), {"splits": "random"}),
        (np.zeros((3, 6)), {"refine_steps": -1}),
        (np.zeros((3, 6)), {"n_jobs": 0}),
    ],
)
def test_bad_fits_are_refused(X, options):
    with pytest.raises(ValueError):
        QuantizedKDTree(**options).fit(X)


def test_not_fitted():
    for call in (
        lambda tree: tree.query(np.zeros((1, 2))),
        lambda tree: tree.codes(),
        lambda tree: tree.arrays(),
        lambda tree: tree.remove([0]),
        len,
    ):
        with pytest.raises(NotFittedError):
            call(QuantizedKDTree())


def test_removed_rows_never_return():
    X = mixture(500, 10)
    tree = QuantizedKDTree(leaf_size=20).fit(X)
    gone = np.arange(0, 500, 3)
    tree.remove(gone)
    tree.remove(gone[:5])
    tree.remove([])
    Q = X[:30]
    kept = np.setdiff1d(np.arange(500), gone)
    found = tree.query(Q, k=400, max_leaves=10**6)
    assert_same(found, oracle(tree.quantizer_, tree.codes(), Q, 400, [kept] * len(Q)))
    assert not np.isin(tree.query(Q, k=9, max_leaves=3)[1], gone).any()
    tree.remove(kept)
    assert (tree.query(Q, k=2, max_leaves=5)[1] == -1).all()
    for rows in ([500], [-1], [[1]], [0.5]):
        with pytest.raises(ValueError, match="rows"):
            tree.remove(rows)


def test_from_codes_equals_fit():
    X = mixture(400, 9)
    fitted = QuantizedKDTree(leaf_size=32).fit(X)
    quantizer = fitted.quantizer_
    built = QuantizedKDTree.from_codes(quantizer.quantize(X), quantizer, **fitted.get_params())
    for name, array in fitted.arrays().items():
        assert array.tobytes() == built.arrays()[name].tobytes()
    with pytest.raises(ValueError, match="codes"):
        QuantizedKDTree.from_codes(np.zeros((3, 8), np.uint8), quantizer)
    with pytest.raises(ValueError, match="codes"):
        QuantizedKDTree.from_codes(np.zeros((0, 9), np.uint8), quantizer)


def test_memory_maps_pickles_and_removal_from_them(tmp_path: Path):
    X, Q = mixture(900, 40), mixture(20, 40, seed=4)
    tree = QuantizedKDTree(leaf_size=64).fit(X)
    expected = tree.query(Q, k=10, max_leaves=3)
    for name, array in tree.arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {p.stem: np.load(p, mmap_mode="r") for p in tmp_path.glob("*.npy")}
    loaded = QuantizedKDTree.from_arrays(mapped, tree.get_params())
    assert_same(loaded.query(Q, k=10, max_leaves=3), expected)
    assert np.shares_memory(loaded.arrays()["codes"], mapped["codes"])
    before = mapped["norms"].copy()
    loaded.remove(expected[1][:, 0])
    assert not np.isin(loaded.query(Q, k=10, max_leaves=3)[1], expected[1][:, 0]).any()
    np.testing.assert_array_equal(mapped["norms"], before)
    assert np.shares_memory(loaded.arrays()["codes"], mapped["codes"])
    again = pickle.loads(pickle.dumps(loaded))
    assert_same(again.query(Q, k=10, max_leaves=3), loaded.query(Q, k=10, max_leaves=3))


def test_memory_at_40_dimensions_is_within_48_bytes():
    tree = QuantizedKDTree().fit(mixture(20000, 40))
    assert sum(a.nbytes for a in tree.arrays().values()) <= 48 * 20000


def _damage(name, change):
    def apply(arrays):
        arrays[name] = change(arrays[name].copy())

    apply.__name__ = name
    return apply


def _set(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: arrays.pop("codes"),
        *(
            _damage(name, lambda a: a[:-1])
            for name in "shape lower step codes norms ids leaf_codes leaf_norms".split()
        ),
        _damage("codes", lambda a: a.astype(np.int8)),
        _damage("norms", lambda a: a.astype(np.float64)),
        _damage("codes", lambda a: a[:, None]),
        _damage("shape", _set(0, 0)),
        _damage("shape", _set(0, 2**40)),
        _damage("shape", _set(1, -3)),
        _damage("shape", _set(2, 10**9)),
        _damage("shape", _set(2, 63)),
        _damage("lower", _set(0, np.nan)),
        _damage("step", _set(3, -1)),
        _damage("step", _set(3, np.inf)),
        _damage("norms", _set(17, np.nan)),
        _damage("norms", _set(17, -1)),
        _damage("norms", _set(-1, 0)),
        _damage("leaf_norms", _set(1, np.inf)),
        _damage("ids", _set(slice(0, 3), 255)),
        _damage("ids", _set(slice(0, 6), 1)),
    ],
)
def test_damaged_arrays_are_refused(damage):
    arrays = QuantizedKDTree(leaf_size=16).fit(mixture(100, 6)).arrays()
    damage(arrays)
    with pytest.raises(IndexFormatError):
        QuantizedKDTree.from_arrays(arrays, {})


def test_quantizer_clips_at_the_quantile_and_keeps_what_it_covers():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20000, 3)).astype(np.float32)
    X[7] = 1000
    quantizer = UniformQuantizer.learn(X, clip_quantile=0.999)
    high = quantizer.lower + 255 * quantizer.step
    inside = ((X >= quantizer.lower) & (X <= high)).mean(0)
    np.testing.assert_allclose(inside, 0.999, atol=2e-4)
    error = np.abs(quantizer.decode(quantizer.quantize(X)) - X)
    ok = (X >= quantizer.lower) & (X <= high)
    assert (error <= quantizer.step * 0.5001)[ok].all()
    whole = UniformQuantizer.learn(X, clip_quantile=1.0)
    np.testing.assert_allclose(whole.lower + 255 * whole.step, X.max(0), rtol=1e-6)
    codes = rng.integers(0, 256, (50, 3)).astype(np.uint8)
    np.testing.assert_array_equal(quantizer.quantize(quantizer.decode(codes)), codes)


@pytest.mark.parametrize(
    ("lower", "step"),
    [([0.0], [1.0, 1.0]), ([], []), ([0.0], [-1.0]), ([np.nan], [1.0]), ([1e30], [1.0])],
)
def test_bad_quantizers_are_refused(lower, step):
    with pytest.raises(ValueError):
        UniformQuantizer(np.array(lower, np.float32), np.array(step, np.float32))

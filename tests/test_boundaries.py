"""One matrix of awkward inputs, run on every public entry point that takes arrays.

The same numbers in any layout give the same answer; what is malformed is refused by name; one row,
no row, more neighbours than rows and photos without features are ordinary cases.
"""

from __future__ import annotations

import numpy as np
import pytest
from search_helpers import DIMENSION, PatchExtractor, make_features, make_photos

from delfsearch import (
    DelfIndex,
    ImageSearch,
    LocalFeatures,
    LocallyOptimizedPQ,
    Matches,
    OptimizedPQ,
    PcaReduction,
    ProductQuantizer,
    QuantizedKDTree,
    Verifier,
)
from delfsearch.index.uniform_quantizer import UniformQuantizer

RNG = np.random.default_rng(3)
X = RNG.normal(size=(30, DIMENSION)).astype(np.float32)
DATABASE = RNG.normal(size=(50, DIMENSION)).astype(np.float32)
TREE = QuantizedKDTree(leaf_size=8).fit(DATABASE)
SOME = TREE.prepare(np.arange(50) % 3 == 0)
PCA = PcaReduction(3).fit(DATABASE)
SPLIT = {"n_subquantizers": 1, "bits": 4}
PQ = OptimizedPQ(**SPLIT).fit(DATABASE)
LOPQ = LocallyOptimizedPQ(n_lists=3, **SPLIT).fit(DATABASE)
CODES = PQ.transform(DATABASE)


def features(descriptors) -> LocalFeatures:
    n = len(descriptors)
    return LocalFeatures(np.stack([np.arange(n), np.arange(n) % 7], axis=1), descriptors)


def small_index() -> DelfIndex:
    return DelfIndex(leaf_size=8).fit([features(DATABASE), features(DATABASE[:0])])


def filled_index() -> DelfIndex:
    return DelfIndex(leaf_size=8).fit([features(DATABASE[i::3]) for i in range(3)])


def contents(index: DelfIndex) -> list[np.ndarray]:
    return [index.features_of(int(image_id)).descriptors for image_id in index.ids]


def answer(matches: Matches) -> list[np.ndarray]:
    return [matches.image_ids, matches.offsets, matches.database_indices, matches.database_xy]


def added(descriptors) -> list[np.ndarray]:
    index = small_index()
    index.add([features(descriptors)])
    return contents(index)


def updated(descriptors) -> list[np.ndarray]:
    index = small_index()
    index.update([1], [features(descriptors)])
    return contents(index)


def verified(xy) -> list[np.ndarray]:
    n = len(xy)
    matches = Matches(
        image_ids=np.array([4]),
        offsets=np.array([0, n]),
        query_indices=np.arange(n),
        database_indices=np.arange(n),
        query_xy=xy,
        database_xy=xy,
        squared_distances=np.ones(n),
    )
    found = Verifier(min_inliers=3, max_error=0.01, min_separation=0.0).verify_all(matches)
    return [found.n_inliers, found.affines, found.inlier_rows]


LEARN = {
    "QuantizedKDTree.fit": lambda X: list(QuantizedKDTree(leaf_size=8).fit(X).arrays().values()),
    "UniformQuantizer.learn": lambda X: [UniformQuantizer.learn(X).lower],
    "PcaReduction.fit": lambda X: [PcaReduction(1).fit(X).components_],
    "ProductQuantizer.fit": lambda X: [ProductQuantizer(**SPLIT).fit(X).codebooks_],
    "OptimizedPQ.fit": lambda X: [OptimizedPQ(**SPLIT).fit(X).rotation_],
    "LocallyOptimizedPQ.fit": lambda X: [
        LocallyOptimizedPQ(n_lists=2, **SPLIT).fit(X).cluster_centers_
    ],
}
TAKE = {
    "LocalFeatures": lambda X: [features(X).descriptors],
    "DelfIndex.fit": lambda X: contents(DelfIndex().fit([features(X)])),
}
ASK = {
    "QuantizedKDTree.query": lambda X: list(TREE.query(X, k=5, max_leaves=3)),
    "QuantizedKDTree.query, k > n": lambda X: list(TREE.query(X, k=70, max_leaves=99)),
    "UniformQuantizer.quantize": lambda X: [TREE.quantizer_.quantize(X)],
    "PcaReduction.transform": lambda X: [PCA.transform(X)],
    "OptimizedPQ.transform": lambda X: [PQ.transform(X)],
    "OptimizedPQ.squared_distances": lambda X: [PQ.squared_distances(X, CODES)],
    "LocallyOptimizedPQ.transform": lambda X: [LOPQ.transform(X), LOPQ.predict(X)],
    "DelfIndex.query": lambda X: answer(small_index().query(features(X), k=4)),
    "DelfIndex.query, k > n": lambda X: answer(small_index().query(features(X), k=200)),
    "DelfIndex.query_many": lambda X: answer(small_index().query_many([features(X)] * 2)[1]),
    "QuantizedKDTree.query, filtered": lambda X: list(TREE.query(X, k=5, allowed=SOME)),
    "DelfIndex.query, filtered": lambda X: answer(
        small_index().query(features(X), k=4, where={"ids": [0]}, exclude_ids=[1])
    ),
    "DelfIndex.query, filtered, k > n": lambda X: answer(
        filled_index().query(features(X), k=200, where={"ids": [0, 1, 2]}, exclude_ids=[0])
    ),
    "DelfIndex.query, nothing allowed": lambda X: answer(
        small_index().query(features(X), k=4, where={"ids": []})
    ),
    "DelfIndex.add": added,
    "DelfIndex.update": updated,
}
EVERY = {**LEARN, **TAKE, **ASK}
LAYOUTS = {
    "float64": lambda A: A.astype(np.float64),
    "big endian": lambda A: A.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "every other row": lambda A: np.repeat(A, 2, axis=0)[::2],
    "every other column": lambda A: np.repeat(A, 2, axis=1)[:, ::2],
    "backwards": lambda A: A[::-1].copy()[::-1],
    "list": lambda A: A.tolist(),
}


def with_value(value: float) -> np.ndarray:
    changed = X.copy()
    changed[11, 2] = value
    return changed


MALFORMED = {
    "NaN": with_value(np.nan),
    "inf": with_value(np.inf),
    "-inf": with_value(-np.inf),
    "beyond float32": with_value(1.0).astype(np.float64) * 1e39,
    "one dimension": X[0],
    "three dimensions": X[None],
    "text": np.full(X.shape, "red"),
    "complex": X.astype(np.complex64),
}


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        # PCA computes in the precision that it is given.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 if a.dtype.kind == "f" else 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EVERY)
def test_any_layout_of_the_same_numbers_gives_the_same_answer(name, layout):
    assert_equal(EVERY[name](LAYOUTS[layout](X)), EVERY[name](X))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_positions_is_verified_alike(layout):
    xy = np.ascontiguousarray(100 * X[:, :2])
    assert verified(xy)[0].tolist() == [len(X)]
    assert_equal(verified(LAYOUTS[layout](xy)), verified(xy))
    given = LocalFeatures(LAYOUTS[layout](xy), X)
    np.testing.assert_array_equal(given.keypoints_xy, xy)


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("name", EVERY)
def test_malformed_arrays_are_refused(name, kind):
    if name.startswith("Pca") and kind == "beyond float32":
        EVERY[name](MALFORMED[kind])  # it computes in float64 where that is what comes
        return
    with pytest.raises((ValueError, TypeError)):
        EVERY[name](MALFORMED[kind])


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_positions_are_refused(kind):
    bad = MALFORMED[kind]
    bad = bad[..., 1:3] if bad.ndim > 1 else bad
    with pytest.raises((ValueError, TypeError)):
        verified(bad)
    with pytest.raises(ValueError, match="keypoints_xy"):
        LocalFeatures(bad, X)


@pytest.mark.parametrize("d", [DIMENSION - 1, DIMENSION + 1])
@pytest.mark.parametrize("name", ASK)
def test_another_dimension_is_refused_with_both_named(name, d):
    with pytest.raises(ValueError, match=rf"\b{d}\b") as error:
        ASK[name](np.ones((4, d), np.float32))
    assert str(DIMENSION) in str(error.value)


SEVERAL = ("PcaReduction.fit", "ProductQuantizer.fit", "OptimizedPQ.fit", "LocallyOptimizedPQ.fit")


@pytest.mark.parametrize("name", [name for name in EVERY if name not in SEVERAL])
def test_one_row_is_enough(name):
    assert len(EVERY[name](X[:1])) >= 1


@pytest.mark.parametrize("name", LEARN)
def test_nothing_is_learned_from_no_rows(name):
    with pytest.raises(ValueError):
        LEARN[name](X[:0])


@pytest.mark.parametrize("name", [*TAKE, *(name for name in ASK if ".transform" not in name)])
def test_no_rows_give_an_empty_answer(name):
    assert_equal(EVERY[name](X[:0]), EVERY[name](X[:0].astype(np.float64)))


@pytest.mark.parametrize("name", ["keypoints_xy", "descriptors", "scores", "scales"])
def test_unequal_lengths_are_refused(name):
    good = {
        "keypoints_xy": X[:, :2],
        "descriptors": X,
        "scores": np.ones(len(X)),
        "scales": np.ones(len(X)),
    }
    assert len(LocalFeatures(**good)) == len(X)
    with pytest.raises(ValueError, match=r"rows|elements"):
        LocalFeatures(**{**good, name: good[name][:-1]})


def test_an_image_search_takes_the_same_layouts_and_refuses_the_same(tmp_path):
    make_photos(tmp_path, 3)
    search = ImageSearch(PatchExtractor()).fit(tmp_path)
    plain = make_features(RNG, 12)
    expected = [hit.id for hit in search.query(plain, min_inliers=3)]
    for change in LAYOUTS.values():
        changed = LocalFeatures(change(plain.keypoints_xy), change(plain.descriptors))
        assert [hit.id for hit in search.query(changed, min_inliers=3)] == expected
    assert search.query(LocalFeatures.empty(DIMENSION)) == []
    with pytest.raises(ValueError, match="columns"):
        search.query(make_features(RNG, 4, DIMENSION + 1))

"""Balanced k-means over the leaves of QuantizedKDTree (refine_steps)."""

from __future__ import annotations

import numpy as np
from descriptor_mixture import mixture
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.index.quantized_kdtree import QuantizedKDTree


def leaves_of(tree: QuantizedKDTree) -> list[np.ndarray]:
    """The rows of each leaf."""
    arrays = tree.arrays()
    n, _, leaf_size = arrays["shape"]
    raw = arrays["ids"].reshape(n, -1).astype(np.int64)
    ids = (raw << (8 * np.arange(raw.shape[1]))).sum(1)
    return [ids[begin : begin + leaf_size] for begin in range(0, n, leaf_size)]


def decoded(tree: QuantizedKDTree) -> np.ndarray:
    return tree.quantizer_.decode(tree.codes()).astype(np.float64)


def within(tree: QuantizedKDTree) -> float:
    """Mean squared distance of a row to the mean of its leaf."""
    X = decoded(tree)
    return sum(((X[rows] - X[rows].mean(0)) ** 2).sum() for rows in leaves_of(tree)) / len(X)


def test_leaves_get_tighter_and_recall_rises():
    X, Q = mixture(8000, 24), mixture(300, 24) + np.float32(0.02)
    squared = (X.astype(np.float64) ** 2).sum(-1) - 2 * Q.astype(np.float64) @ X.T
    exact = np.argpartition(squared, 20, axis=1)[:, :20]
    spreads, recalls = [], []
    for steps in (0, 1, 3):
        tree = QuantizedKDTree(leaf_size=32, refine_steps=steps).fit(X)
        ids = tree.query(Q, k=20, max_leaves=8)[1]
        spreads.append(within(tree))
        recalls.append(np.mean([len(set(a) & set(b)) / 20 for a, b in zip(ids, exact)]))
    assert spreads[0] > spreads[1] > spreads[2]
    assert recalls[0] < recalls[1] < recalls[2]


def test_one_round_is_a_stable_matching_of_rows_and_leaves():
    # At most 8 leaves, so that every row may choose among all of them. Stable: no row is nearer to
    # another leaf than to its own while that leaf holds a row that is farther. The core computes
    # distances with 8-bit means, hence the margin.
    X = mixture(320, 8, seed=3)
    before = QuantizedKDTree(leaf_size=48, refine_steps=0).fit(X)
    after = QuantizedKDTree(leaf_size=48, refine_steps=1).fit(X)
    rows = decoded(before)
    means = np.array([rows[leaf].mean(0) for leaf in leaves_of(before)])
    distances = ((rows[:, None] - means) ** 2).sum(-1)
    margin = 0.02 * distances.mean()
    own = np.empty(len(X), int)
    for number, leaf in enumerate(leaves_of(after)):
        own[leaf] = number
    assert (own != np.concatenate([np.full(48, i) for i in range(7)])[: len(X)]).any()
    moved = 0
    for number, leaf in enumerate(leaves_of(after)):
        farthest = distances[leaf, number].max()
        wishing = distances[:, number] + margin < distances[np.arange(len(X)), own]
        assert (distances[wishing, number] >= farthest - margin).all()
        moved += wishing.sum()
    assert moved > 0  # some were refused, or the test shows nothing


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 400),
    leaf_size=st.sampled_from([16, 17, 31, 48, 64]),
    kinds=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_every_row_stays_in_one_leaf_whatever_the_data(n, leaf_size, kinds, seed):
    X = mixture(kinds, 5, seed)[np.random.default_rng(seed).integers(0, kinds, n)]
    tree = QuantizedKDTree(leaf_size=leaf_size, refine_steps=2).fit(X)
    leaves = leaves_of(tree)
    assert sorted(np.concatenate(leaves)) == list(range(n))
    assert all((np.diff(leaf) > 0).all() for leaf in leaves)
    ids = tree.query(X, k=1, max_leaves=tree.n_leaves_)[1]
    np.testing.assert_array_equal(tree.codes()[ids[:, 0]], tree.codes())


def test_small_leaves_keep_the_cells_of_the_tree():
    X = mixture(500, 6)
    refined, plain = (QuantizedKDTree(leaf_size=15, refine_steps=s).fit(X) for s in (3, 0))
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(refined.arrays()[name], array)


def test_more_leaves_than_one_run_takes():
    # 18,750 leaves: two runs, which the second round shifts. Threads change nothing.
    X = mixture(300_000, 8, seed=1)
    one = QuantizedKDTree(leaf_size=16, refine_steps=2, n_jobs=1).fit(X)
    two = QuantizedKDTree(leaf_size=16, refine_steps=2, n_jobs=2).fit(X)
    for name, array in one.arrays().items():
        assert array.tobytes() == two.arrays()[name].tobytes(), name
    rows = np.concatenate(leaves_of(one))
    assert (np.bincount(rows, minlength=len(X)) == 1).all()
    assert within(one) < within(QuantizedKDTree(leaf_size=16, refine_steps=0).fit(X))

"""Fits the mixture of _synthetic.py on real descriptors.

Cells, spreads and covariances are those of k-means; shares and distances of copies are counted. A
mixture of normal distributions is smoother than what it was fitted on, so that neighbours are
farther: `row_sigma` and `knot_share` are then set so that nearest neighbours are as far as the real
ones, of few rows and of many, and the shares so that photos have as many near rows and as few
different cells.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from _synthetic import BLOCK_PHOTOS, GROUPS, PHOTO_ROWS, QUANTILES, Mixture, Synthetic

from delfsearch import _core

_MAX_CELLS_OF_GROUP, _ROWS_OF_CELL = 256, 40
_FIT_ROWS = 1_000_000
_NEAR_COPY_RATIO = 0.5  # of the squared distance that chance gives in as many rows
_NEAREST = 0.04  # share of rows whose distance says how many copies there are
_MATCH_RATIO = 0.64  # squared: Lowe's .8
_MATCHES_OF_SCENE = 8  # of two photos, that pass the ratio test
_FEW = 10_000
FIRST_TEST_BLOCK = 1 << 24  # blocks that no database has


def squared_to(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Squared distances (m, n) float32 between rows of length 1."""
    products = queries @ rows.T
    products *= -2
    products += 2
    return products


def nearest_squared(queries: np.ndarray, X: np.ndarray) -> np.ndarray:
    best = np.full(len(queries), np.inf, np.float32)
    for begin in range(0, len(X), 1 << 15):
        best = np.minimum(best, squared_to(queries, X[begin : begin + (1 << 15)]).min(1))
    return np.maximum(best, 0)


def nearest_in_photos(X: np.ndarray, starts: np.ndarray, rows: int) -> np.ndarray:
    """Squared distance of each row to the nearest other of its photo, whose first rows are kept."""
    found = []
    for begin, end in itertools.pairwise(starts):
        block = X[begin : min(end, begin + rows)]
        squared = squared_to(block, block)
        np.fill_diagonal(squared, np.inf)
        found.append(squared.min(1))
    return np.maximum(np.concatenate(found), 0)


def starts_of(photos: np.ndarray) -> np.ndarray:
    """First rows of photos, whose numbers (n,) stand one photo after another, and n."""
    return np.concatenate([[0], np.flatnonzero(np.diff(photos)) + 1, [len(photos)]])


def whole_photos(
    X: np.ndarray, starts: np.ndarray, n_photos: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """500 rows of each of some photos that have as many, and the rows of the other photos."""
    full = np.flatnonzero(np.diff(starts) >= PHOTO_ROWS)
    if len(full) < 2:
        raise SystemExit(f"at least 2 photos must have {PHOTO_ROWS} descriptors; got {len(full)}")
    some = np.sort(rng.permutation(full)[: min(n_photos, len(full) // 2)])
    rows = np.concatenate(
        [starts[p] + np.sort(rng.permutation(starts[p + 1] - starts[p])[:PHOTO_ROWS]) for p in some]
    )
    others = np.ones(len(X), bool)
    for p in some:
        others[starts[p] : starts[p + 1]] = False
    return X[rows], X[others]


def fit(X: np.ndarray, photos: np.ndarray, seed: int = 0, n_threads: int = 1) -> Mixture:
    """Fit on rows (n, d) of length 1 with the photo number of each (n,), photos one after another.

    At least some ten thousand rows; of more than a million, as many photos as make a million.
    """
    rng = np.random.default_rng(seed)
    starts = starts_of(photos)
    if len(X) > _FIT_ROWS:
        kept = np.repeat(rng.random(len(starts) - 1) < _FIT_ROWS / len(X), np.diff(starts))
        X, photos = np.ascontiguousarray(X[kept]), photos[kept]
        starts = starts_of(photos)
    centres, group_of, cells = _cells_of(X, seed, n_threads)
    n_cells, dimension = centres.shape
    counts = np.bincount(cells, minlength=n_cells)
    residuals = X - centres[cells]
    energy = np.bincount(cells, (residuals**2).sum(1), n_cells)
    # A cell of n rows has lost one of n degrees of freedom to its centre.
    mean_energy = energy.sum() / max(1, len(X) - n_cells)
    spreads = np.sqrt((energy + 8 * mean_energy) / (np.maximum(counts - 1, 0) + 8))
    residuals /= spreads[cells][:, None]
    factors = np.zeros((GROUPS, dimension, dimension), np.float32)
    for g in np.unique(group_of):
        own = residuals[group_of[cells] == g]
        covariance = (own.T @ own).astype(np.float64) / len(own)
        values, vectors = np.linalg.eigh(covariance / np.trace(covariance))
        factors[g] = (vectors * np.sqrt(np.maximum(values, 1e-6 * values[-1]))).T
    copy_share, copy_squared = _copies_of(X, starts, rng)
    twin_share, twin_squared = _matches_of(X, photos, starts, rng)
    mixture = Mixture(
        centres=centres,
        shares=np.cumsum(counts) / counts.sum(),
        spreads=spreads.astype(np.float32),
        group_of=group_of.astype(np.uint8),
        factors=factors,
        row_sigma=0.0,
        knot_share=0.0,
        own_share=0.1,
        copy_share=copy_share,
        copy_squared=copy_squared,
        twin_share=twin_share,
        twin_squared=twin_squared,
    )
    return _tune_photos(_tune_neighbours(mixture, X, starts, rng), X, starts, rng, n_threads)


def _cells_of(X: np.ndarray, seed: int, n_threads: int) -> tuple[np.ndarray, ...]:
    """Return centres, their groups, and the cell of each row; two levels of k-means."""
    top, _, _ = _core.kmeans(X, GROUPS, 15, 1e-4, 0, seed, n_threads)
    group, _ = _core.assign_nearest(top, X, n_threads)
    centres, groups, cells = [], [], np.empty(len(X), np.int64)
    for g in range(GROUPS):
        rows = np.flatnonzero(group == g)
        if len(rows) == 0:
            continue
        n = max(1, min(_MAX_CELLS_OF_GROUP, len(rows) // _ROWS_OF_CELL))
        part = np.ascontiguousarray(X[rows])
        fine, _, _ = _core.kmeans(part, n, 10, 1e-4, 0, seed, n_threads)
        cells[rows] = _core.assign_nearest(fine, part, n_threads)[0] + sum(map(len, centres))
        centres.append(fine)
        groups.append(np.full(n, g))
    return np.concatenate(centres), np.concatenate(groups), cells


def _copies_of(
    X: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Rows of a photo that are nearer to another of it than rows of any photos are by chance."""
    own, _ = whole_photos(X, starts, 200, rng)
    within = nearest_in_photos(own, np.arange(0, len(own) + 1, PHOTO_ROWS), PHOTO_ROWS)
    chance = _among_any(X, rng)
    bound = _NEAR_COPY_RATIO * np.median(chance)
    near = within[within < bound]
    share = max(0.0, len(near) / len(within) - (chance < bound).mean())
    return float(share) / 2, np.quantile(near, QUANTILES).astype(np.float32)


def _among_any(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Squared distances to the nearest of 500 rows of any photos."""
    mixed = X[rng.integers(0, len(X), 40 * PHOTO_ROWS)]
    return nearest_in_photos(mixed, np.arange(0, len(mixed) + 1, PHOTO_ROWS), PHOTO_ROWS)


def _matches_of(
    X: np.ndarray, photos: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Share of rows with a true match in another photo, halved, since a copy makes two such rows,
    and quantiles of the squared distances of true matches.

    Pairs of photos of one scene are those with several matches that pass the ratio test. Among all
    their mutual nearest neighbours, the true ones are what is there beyond the distances that pairs
    of any photos give.
    """
    rows = rng.permutation(len(X))[:3000]
    first, second, other = _two_nearest(X[rows], photos[rows], X, photos)
    passed = first < _MATCH_RATIO * second
    index = {int(p): i for i, p in enumerate(photos[starts[:-1]])}
    pairs = {
        tuple(sorted((index[int(a)], index[int(b)])))
        for a, b in zip(photos[rows[passed]], other[passed])
    }
    edges = np.linspace(0, 1.5, 61)
    same, n_same, any_, n_any = np.zeros(60), 0, np.zeros(60), 0
    for a, b in sorted(pairs):
        squared, ratio = _mutual(X[starts[a] : starts[a + 1]], X[starts[b] : starts[b + 1]])
        if (ratio < _MATCH_RATIO).sum() >= _MATCHES_OF_SCENE:
            same += np.histogram(squared, edges)[0]
            n_same += 1
        c, d = rng.integers(0, len(starts) - 1, 2)
        if c != d:
            squared, _ = _mutual(X[starts[c] : starts[c + 1]], X[starts[d] : starts[d + 1]])
            any_ += np.histogram(squared, edges)[0]
            n_any += 1
    if n_same == 0 or n_any == 0:
        raise SystemExit(
            "no two photos with matches between them were found: nothing to fit the noise of "
            "planted queries on; take descriptors of photos that show some things twice"
        )
    # Beyond the middle of the distances by chance all is chance.
    far = np.cumsum(any_) > any_.sum() / 2
    true = np.maximum(0, same - any_ * same[far].sum() / any_[far].sum())
    true[far] = 0
    below = np.concatenate([[0], np.cumsum(true) / true.sum()])
    rises = np.concatenate([[True], np.diff(below) > 0])
    quantiles = np.interp(QUANTILES, below[rises], edges[rises])
    return float(passed.mean() / 2), quantiles.astype(np.float32)


def _two_nearest(
    queries: np.ndarray, own: np.ndarray, X: np.ndarray, photos: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances of queries to the nearest row of another photo than their own and to the
    nearest of a third photo, and the photo of the former."""
    best = np.full((2, len(queries)), np.inf, np.float32)
    best_photo = np.full(len(queries), -1)
    at = np.arange(len(queries))
    for begin in range(0, len(X), 1 << 15):
        part = photos[begin : begin + (1 << 15)]
        squared = squared_to(queries, X[begin : begin + (1 << 15)])
        squared[own[:, None] == part] = np.inf
        for _ in range(2):
            nearest = squared.argmin(1)
            value, photo = squared[at, nearest], part[nearest]
            same, nearer = photo == best_photo, value < best[0]
            other = np.where(nearer, best[0], np.minimum(best[1], value))
            best[1] = np.where(same, best[1], other)
            best_photo = np.where(nearer, photo, best_photo)
            best[0] = np.minimum(best[0], value)
            squared[part == photo[:, None]] = np.inf
    return np.maximum(best[0], 0), np.maximum(best[1], 0), best_photo


def _mutual(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of mutual nearest neighbours, and their ratio to those of the second."""
    if len(A) < 2 or len(B) < 2:
        return np.zeros(0), np.zeros(0)
    squared = np.maximum(squared_to(A, B), 0)
    to = squared.argmin(1)
    rows = np.flatnonzero(squared.argmin(0)[to] == np.arange(len(A)))
    two = np.partition(squared[rows], 1, axis=1)[:, :2]
    return two[:, 0], two[:, 0] / np.maximum(two[:, 1], 1e-12)


def _tune_neighbours(
    mixture: Mixture, X: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> Mixture:
    """Set row_sigma by neighbours among few rows, knot_share by neighbours among many."""
    queries, others = whole_photos(X, starts, 100, rng)
    queries, others = queries[:: max(1, len(queries) // 1000)], rng.permutation(others)
    others = others[: _FIT_ROWS // 2]

    def median(mixture: Mixture, n: int) -> float:
        synthetic = Synthetic(replace(mixture, twin_share=0.0, copy_share=0.0))
        made_rng = np.random.default_rng(1)
        n_photos = -(-(n + len(queries)) // PHOTO_ROWS)
        made = synthetic.rows(n_photos, PHOTO_ROWS, np.random.default_rng(2))
        made = made[made_rng.permutation(len(made))]
        return float(np.median(nearest_squared(made[: len(queries)], made[len(queries) :][:n])))

    few = min(_FEW, len(others) // 4)
    targets = [float(np.median(nearest_squared(queries, others[:n]))) for n in (few, len(others))]
    for _ in range(2):
        for name, n, target, most in (
            ("row_sigma", few, targets[0], 0.8),
            ("knot_share", len(others), targets[1], 0.95),
        ):
            low, high = 0.0, most
            for _ in range(6):
                middle = (low + high) / 2
                if median(replace(mixture, **{name: middle}), n) > target:
                    low = middle
                else:
                    high = middle
            mixture = replace(mixture, **{name: (low + high) / 2})
    return mixture


def _tune_photos(
    mixture: Mixture,
    X: np.ndarray,
    starts: np.ndarray,
    rng: np.random.Generator,
    n_threads: int,
) -> Mixture:
    """Set copy_share by how many rows of a photo are near to another of it, own_share by how many
    different cells they fall in."""
    real, others = whole_photos(X, starts, 2 * BLOCK_PHOTOS, rng)
    coarse, _, _ = _core.kmeans(
        np.ascontiguousarray(others[rng.permutation(len(others))[:100_000]]),
        min(1024, len(others) // 40), 10, 1e-4, 0, 0, n_threads,
    )  # fmt: skip
    starts = np.arange(0, len(real) + 1, PHOTO_ROWS)
    bound = np.quantile(nearest_in_photos(real, starts, PHOTO_ROWS), _NEAREST)

    def look(rows: np.ndarray) -> tuple[float, float]:
        at = np.arange(0, len(rows) + 1, PHOTO_ROWS)
        near = (nearest_in_photos(rows, at, PHOTO_ROWS) < bound).mean()
        cells, _ = _core.assign_nearest(coarse, np.ascontiguousarray(rows), n_threads)
        return float(near), mean_distinct(cells)

    target_near, target_cells = look(real)
    for _ in range(2):
        for name, most in (("own_share", 0.9), ("copy_share", 0.45)):
            low, high = 0.0, most
            for _ in range(6):
                middle = (low + high) / 2
                tried = Synthetic(replace(mixture, **{name: middle}))
                near, cells = look(tried.block(FIRST_TEST_BLOCK)[0])
                too_little = near < target_near if name == "copy_share" else cells > target_cells
                low, high = (middle, high) if too_little else (low, middle)
            mixture = replace(mixture, **{name: (low + high) / 2})
    return mixture


def mean_distinct(cells: np.ndarray) -> float:
    """Different cells of a photo of 500 rows."""
    return float(np.mean([len(np.unique(c)) for c in cells.reshape(-1, PHOTO_ROWS)]))

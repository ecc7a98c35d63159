"""Descriptors made on the fly that look like real ones: billions, by seed, block by block.

A mixture is fitted on real descriptors: some thousand cells of a two-level k-means, each with its
share and its spread, and a covariance for each group of cells (the spectrum). Within a photo some
cells come again far more often than by chance, and some rows are near copies of others (the
burstiness); some rows are also found in the photo before (two photos of one scene). Shares and
distances of copies are those of the real descriptors.

Block i depends on the seed and on i alone. Normal deviates are not drawn for each row, that would
take most of the time: slices of one table of them are turned by random rotations and added in
pairs, anew for each block and group of cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delfsearch import _core

BLOCK_PHOTOS = 100
PHOTO_ROWS = 500
_GROUPS, _MAX_CELLS_OF_GROUP, _ROWS_OF_CELL = 64, 256, 40
_OWN_CELLS = 24  # cells that a photo prefers
_TABLE_ROWS, _ROTATIONS = 1 << 16, 128
QUANTILES = np.linspace(0, 1, 65)
_FIT_ROWS = 1_000_000
_NEAR_COPY_RATIO = 0.5  # of the squared distance that chance gives in as many rows
_MATCH_RATIO = 0.64  # squared: Lowe's .8


@dataclass(frozen=True, eq=False)
class Mixture:
    """centres (c, d); shares (c,) cumulated; spreads (c,); group_of (c,), which rises;
    factors (g, d, d), whose product is the covariance of a group; row_sigma : of the logarithm of
    the spread of a row; own_share : of rows from the cells that a photo prefers; copy_share,
    twin_share : of rows that are copies from their photo, from the one before; *_squared : the
    quantiles of their squared distances."""

    centres: np.ndarray
    shares: np.ndarray
    spreads: np.ndarray
    group_of: np.ndarray
    factors: np.ndarray
    row_sigma: float
    own_share: float
    copy_share: float
    copy_squared: np.ndarray
    twin_share: float
    twin_squared: np.ndarray

    def save(self, path: Path) -> None:
        partial = path.with_name("partial_" + path.name)
        np.savez(partial, **vars(self))
        partial.rename(path)

    @staticmethod
    def load(path: Path) -> Mixture:
        with np.load(path) as stored:
            arrays: Mapping[str, Any] = dict(stored)
        return Mixture(**{k: v if v.ndim else float(v) for k, v in arrays.items()})


def squared_to(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Squared distances (m, n) float32 between rows of length 1."""
    products = queries @ rows.T
    products *= -2
    products += 2
    return products


def nearest_in_photos(X: np.ndarray, starts: np.ndarray, rows: int) -> np.ndarray:
    """Squared distance of each row to the nearest other of its photo, whose first rows are kept."""
    found = []
    for begin, end in itertools.pairwise(starts):
        block = X[begin : min(end, begin + rows)]
        squared = squared_to(block, block)
        np.fill_diagonal(squared, np.inf)
        found.append(squared.min(1))
    return np.maximum(np.concatenate(found), 0)


def two_nearest(
    queries: np.ndarray, own: np.ndarray, X: np.ndarray, photos: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of queries to the nearest row of another photo than their own, and to the
    nearest of a third photo."""
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
            best[1] = np.where(same, best[1], np.where(nearer, best[0], np.minimum(best[1], value)))
            best_photo = np.where(nearer, photo, best_photo)
            best[0] = np.minimum(best[0], value)
            squared[part == photo[:, None]] = np.inf
    return np.maximum(best[0], 0), np.maximum(best[1], 0)


def _cells_of(X: np.ndarray, seed: int, n_threads: int) -> tuple[np.ndarray, ...]:
    """Return centres, their groups, and the cell of each row; two levels of k-means."""
    top, _, _ = _core.kmeans(X, _GROUPS, 15, 1e-4, 0, seed, n_threads)
    group, _ = _core.assign_nearest(top, X, n_threads)
    centres, groups, cells = [], [], np.empty(len(X), np.int64)
    for g in range(_GROUPS):
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


def fit(X: np.ndarray, photos: np.ndarray, seed: int = 0, n_threads: int = 1) -> Mixture:
    """Fit on rows (n, d) of length 1 with the photo number of each (n,), photos one after another.

    At least some ten thousand rows; of more than a million, as many photos as make a million.
    """
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(photos)) + 1, [len(photos)]])
    if len(X) > _FIT_ROWS:
        kept = rng.random(len(starts) - 1) < _FIT_ROWS / len(X)
        rows = np.repeat(kept, np.diff(starts))
        X, photos = np.ascontiguousarray(X[rows]), photos[rows]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(photos)) + 1, [len(photos)]])
    centres, group_of, cells = _cells_of(X, seed, n_threads)
    n_cells, dimension = centres.shape
    counts = np.bincount(cells, minlength=n_cells)
    residuals = X - centres[cells]
    energy = np.bincount(cells, (residuals**2).sum(1), n_cells)
    # A cell of n rows has lost one of n degrees of freedom to its centre.
    mean_energy = energy.sum() / max(1, len(X) - n_cells)
    spreads = np.sqrt((energy + 8 * mean_energy) / (np.maximum(counts - 1, 0) + 8))
    whitened = residuals / spreads[cells][:, None]
    factors = np.zeros((_GROUPS, dimension, dimension), np.float32)
    lengths = []
    for g in np.unique(group_of):
        rows = np.flatnonzero(group_of[cells] == g)
        covariance = whitened[rows].T @ whitened[rows] / len(rows)
        covariance *= 1 / np.trace(covariance)
        values, vectors = np.linalg.eigh(covariance.astype(np.float64))
        values = np.maximum(values, 1e-6 * values[-1])
        factors[g] = (vectors * np.sqrt(values)).T
        rows = rows[counts[cells[rows]] >= _ROWS_OF_CELL // 2]
        lengths.append((((whitened[rows] @ vectors) ** 2) / values).sum(1))
    own = np.log(np.maximum(1e-9, np.concatenate(lengths)))
    own = np.subtract(*np.quantile(own, (0.84, 0.16))) / 4  # two sigmas, of squares
    chance = np.log(rng.chisquare(dimension, 100_000)).std() / 2
    copies = _fit_copies(X, starts, rng)
    return Mixture(
        centres=centres,
        shares=np.cumsum(counts) / counts.sum(),
        spreads=spreads.astype(np.float32),
        group_of=group_of.astype(np.uint8),
        factors=factors,
        row_sigma=float(np.sqrt(max(0.0, own**2 - chance**2))),
        own_share=_fit_own_share(cells, starts, n_cells, copies[0]),
        copy_share=copies[0],
        copy_squared=copies[1],
        **_fit_twins(X, photos, rng),
    )


def _fit_copies(
    X: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Rows of a photo that are nearer to another of it than rows of any photos are by chance."""
    full = np.flatnonzero(np.diff(starts) >= PHOTO_ROWS)
    if len(full) == 0:
        raise SystemExit(f"no photo has {PHOTO_ROWS} descriptors: nothing to fit burstiness on")
    some = rng.permutation(full)[:200]
    within = np.concatenate([nearest_in_photos(X, starts[p : p + 2], PHOTO_ROWS) for p in some])
    mixed = X[rng.integers(0, len(X), 40 * PHOTO_ROWS)]
    chance = nearest_in_photos(mixed, np.arange(0, len(mixed) + 1, PHOTO_ROWS), PHOTO_ROWS)
    bound = _NEAR_COPY_RATIO * np.median(chance)
    near = within[within < bound]
    # Of two near rows one is the copy. What chance alone puts below the bound is no copy.
    share = max(0.0, len(near) / len(within) - (chance < bound).mean()) / 1.6
    return float(share), np.quantile(near, QUANTILES).astype(np.float32)


def _fit_own_share(cells: np.ndarray, starts: np.ndarray, n_cells: int, copy_share: float) -> float:
    """Share of rows from own cells, by how often two rows of a photo fall into one cell."""
    together = pairs = 0.0
    for begin, end in itertools.pairwise(starts):
        n = np.bincount(cells[begin:end], minlength=1)
        together += float((n * (n - 1.0)).sum())
        pairs += (end - begin) * (end - begin - 1.0)
    share = np.bincount(cells, minlength=n_cells) / len(cells)
    by_chance = float((share**2).sum())
    # Copies account for some of it: one of their photo's rows each, with the skew of `_copies`.
    by_copies = 2 * copy_share / PHOTO_ROWS
    excess = max(0.0, together / max(1.0, pairs) - by_chance - by_copies)
    weights = _own_weights()
    return float(min(0.9, np.sqrt(excess / (weights**2).sum())))


def _own_weights() -> np.ndarray:
    weights = 1 / np.arange(2.0, _OWN_CELLS + 2)
    return weights / weights.sum()


def _fit_twins(X: np.ndarray, photos: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Rows whose nearest in another photo passes the ratio test: true matches, as far as known."""
    rows = rng.permutation(len(X))[:2000]
    first, second = two_nearest(X[rows], photos[rows], X, photos)
    true = first < _MATCH_RATIO * second
    if true.sum() < 10:
        raise SystemExit("too few matches between photos to fit the noise of planted queries on")
    return {
        "twin_share": float(true.mean() / 2),
        "twin_squared": np.quantile(first[true], QUANTILES).astype(np.float32),
    }


class Synthetic:
    """block(i) : photos i * 100 to (i + 1) * 100 of 500 descriptors each."""

    def __init__(self, mixture: Mixture, seed: int = 0) -> None:
        self.mixture, self.seed = mixture, seed
        self.dimension = mixture.centres.shape[1]
        rng = np.random.default_rng([seed, 1])
        shape = _TABLE_ROWS, self.dimension
        self._table = rng.standard_normal(shape, dtype=np.float32)
        turns = rng.standard_normal((_ROTATIONS, self.dimension, self.dimension))
        self._rotations = np.linalg.qr(turns)[0].astype(np.float32)
        occupied = mixture.shares > np.concatenate([[0], mixture.shares[:-1]])
        groups = np.bincount(
            mixture.group_of, np.diff(mixture.shares, prepend=0) * occupied, len(mixture.factors)
        )
        self._mean_factor = np.linalg.cholesky(
            np.einsum("g,gij,gik->jk", groups, mixture.factors, mixture.factors, optimize=True)
            + 1e-9 * np.eye(self.dimension)
        ).T.astype(np.float32)
        # A cell for each of 65,536 equal parts of probability: a look-up in place of a search.
        middle = (np.arange(1 << 16) + 0.5) / (1 << 16)
        self._cell_at = np.searchsorted(mixture.shares, middle).astype(np.int32)

    def rows(self, n_photos: int, n: int, rng: np.random.Generator) -> np.ndarray:
        """n independent rows for each photo, from the mixture and the cells it prefers."""
        mixture = self.mixture
        cells = self._cell_at[rng.integers(0, 1 << 16, (n_photos, n), np.uint16)]
        n_own = rng.binomial(n, mixture.own_share, n_photos)
        own = self._cell_at[rng.integers(0, 1 << 16, (n_photos, _OWN_CELLS), np.uint16)]
        choice = np.searchsorted(
            np.cumsum(_own_weights())[:-1], rng.random((n_photos, n), np.float32)
        )
        # Rows of a photo stand in no order: the first ones are those of its own cells.
        preferred = np.arange(n) < n_own[:, None]
        cells = np.where(preferred, np.take_along_axis(own, choice, 1), cells).reshape(-1)
        return self._at(cells, rng)

    def _at(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mixture, n = self.mixture, len(cells)
        group = mixture.group_of[cells]
        order = np.argsort(group, kind="stable")
        ends = np.cumsum(np.bincount(group, minlength=len(mixture.factors)))
        sorted_cells = cells[order]
        spread = mixture.spreads[sorted_cells]
        if mixture.row_sigma:
            deviates = self._table.reshape(-1)
            begin = int(rng.integers(0, max(1, deviates.size - n)))
            logarithm = np.resize(deviates[begin : begin + n], n)
            spread *= np.exp(mixture.row_sigma * logarithm - mixture.row_sigma**2)
        X = np.empty((n, self.dimension), np.float32)
        noise = np.empty((n, self.dimension), np.float32)
        begin = 0
        for g, end in enumerate(ends):
            if end > begin:
                self._noise(end - begin, mixture.factors[g], rng, noise[begin:end])
            begin = end
        noise *= spread[:, None]
        noise += mixture.centres[sorted_cells]
        noise *= 1 / np.sqrt(np.einsum("ij,ij->i", noise, noise))[:, None]
        X[order] = noise
        return X

    def _noise(self, n: int, factor: np.ndarray, rng: np.random.Generator, out: np.ndarray) -> None:
        """Normal rows whose covariance is that of the factor."""
        for begin in range(0, n, _TABLE_ROWS // 4):
            part = out[begin : begin + _TABLE_ROWS // 4]
            at = rng.integers(0, _TABLE_ROWS - len(part) + 1, 2)
            turns = self._rotations[rng.integers(0, _ROTATIONS, 2)] @ factor
            turns *= np.float32(np.sqrt(0.5))
            np.matmul(self._table[at[0] : at[0] + len(part)], turns[0], out=part)
            part += self._table[at[1] : at[1] + len(part)] @ turns[1]

    def noisy(self, X: np.ndarray, squared: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of length 1 at these squared distances from rows X of length 1."""
        away = np.empty_like(X)
        self._noise(len(X), self._mean_factor, rng, away)
        away -= X * np.einsum("ij,ij->i", away, X)[:, None]
        away *= 1 / np.sqrt(np.einsum("ij,ij->i", away, away))[:, None]
        cosine = 1 - squared / 2
        away *= np.sqrt(np.maximum(0, 1 - cosine**2))[:, None]
        away += X * cosine[:, None]
        return away

    def block(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return X (50,000, d) float32, rows of length 1, and counts (100,) int64."""
        mixture, rng = self.mixture, np.random.Generator(np.random.SFC64([self.seed, 2, i]))
        n_copies = round(mixture.copy_share * PHOTO_ROWS)
        n_twins = round(mixture.twin_share * PHOTO_ROWS)
        n_free = PHOTO_ROWS - n_copies - n_twins
        X = np.empty((BLOCK_PHOTOS, PHOTO_ROWS, self.dimension), np.float32)
        X[:, :n_free] = self.rows(BLOCK_PHOTOS, n_free, rng).reshape(BLOCK_PHOTOS, n_free, -1)
        photo = np.arange(BLOCK_PHOTOS)[:, None]

        def copies(n: int, of: np.ndarray, quantiles: np.ndarray, skew: float) -> np.ndarray:
            u = rng.random((BLOCK_PHOTOS, n), np.float32)
            source = (u**skew * n_free).astype(np.int64)
            squared = np.interp(rng.random(BLOCK_PHOTOS * n), QUANTILES, quantiles)
            rows = X[of, np.minimum(source, n_free - 1)].reshape(-1, self.dimension)
            return self.noisy(rows, squared.astype(np.float32), rng).reshape(
                BLOCK_PHOTOS, n, self.dimension
            )

        # What repeats in a photo repeats more than once: sources are skewed.
        X[:, n_free : n_free + n_copies] = copies(n_copies, photo, mixture.copy_squared, 2.0)
        X[:, n_free + n_copies :] = copies(n_twins, photo - 1, mixture.twin_squared, 1.0)
        return X.reshape(-1, self.dimension), np.full(BLOCK_PHOTOS, PHOTO_ROWS, np.int64)

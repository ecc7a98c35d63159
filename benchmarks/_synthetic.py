"""Descriptors made on the fly that look like real ones: billions, by seed, block by block.

A mixture is fitted on real descriptors (_synthetic_fit.py): some thousand cells of a two-level
k-means, each with its share and its spread, and a covariance for each group of cells (the
spectrum). Within a cell rows lie about knots, some far more often than others, and nearer or
farther (local density). Within a photo some cells come again far more often than by chance, and
some rows are near copies of others (burstiness); some are also found in the photo before (two
photos of one scene).

Block i depends on the seed and on i alone. Normal deviates are not drawn for each row, that would
take most of the time: slices of one table of them are turned by random rotations and added in
pairs, anew for each block and group of cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_PHOTOS = 100
PHOTO_ROWS = 500
GROUPS = 64  # of cells, that share a covariance
_OWN_CELLS = 24  # cells that a photo prefers
_KNOTS, _KNOT_SKEW = 64, 3.0  # places in a cell around which its rows lie, some far more often
_TABLE_BITS, _ROTATIONS = 16, 128
_TABLE_ROWS = 1 << _TABLE_BITS
QUANTILES = np.linspace(0, 1, 65)


@dataclass(frozen=True, eq=False)
class Mixture:
    """centres (c, d); shares (c,) cumulated; spreads (c,); group_of (c,), which rises;
    factors (g, d, d), whose product is the covariance of a group.

    row_sigma : of the logarithm of the spread of a row; knot_share : of the variance within a cell,
    between knots; own_share : of rows from the cells that a photo prefers; copy_share, twin_share :
    of rows that are copies from their photo, from the one before; *_squared : the quantiles of
    their squared distances.
    """

    centres: np.ndarray
    shares: np.ndarray
    spreads: np.ndarray
    group_of: np.ndarray
    factors: np.ndarray
    row_sigma: float
    knot_share: float
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


def own_weights() -> np.ndarray:
    weights = 1 / np.arange(2.0, _OWN_CELLS + 2)
    return weights / weights.sum()


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
            np.cumsum(own_weights())[:-1], rng.random((n_photos, n), np.float32)
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
        # The knots of a cell are rows of the table too.
        knot = (rng.random(n, np.float32) ** _KNOT_SKEW * _KNOTS).astype(np.uint32)
        knot += sorted_cells.astype(np.uint32) * _KNOTS
        knot = (knot * np.uint32(2654435761)) >> np.uint32(32 - _TABLE_BITS)
        noise = self._table[knot]
        begin = 0
        for g, end in enumerate(ends):
            if end > begin:
                own = np.float32(np.sqrt(mixture.knot_share)) * mixture.factors[g]
                at_knots = noise[begin:end] @ own
                rest = np.float32(np.sqrt(1 - mixture.knot_share)) * mixture.factors[g]
                self._noise(end - begin, rest, rng, noise[begin:end])
                noise[begin:end] += at_knots
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

"""Resamples of queries for the bootstrap: how often each query counts.

Queries with ground truth and distractor queries are resampled apart, each to its own size: how many
distractor queries there are is a choice of the protocol (Q^D in the paper), not chance, and R@90%
falls steeply with it. Within each part whole scenes are drawn with replacement where scenes are
known (the cluster bootstrap: photos of one building succeed or fail together, and intervals over
single queries would be too narrow); a query without a scene is drawn by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_integer, check_seed
from delfsearch.evaluation.judged import JudgedQueries

# Counts handled at once: resamples times queries.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class _Stratum:
    """Queries resampled together: rows, and for each the number of its cluster, of n_clusters."""

    rows: NDArray[np.int64]
    cluster_of: NDArray[np.int64]
    n_clusters: int


@dataclass(frozen=True, eq=False)
class Resampler:
    """Draws resamples of judged queries; the same ones for the same queries and random_state.

    n_queries : q. n_clusters : scenes among the queries with ground truth (queries without a scene
    count as one each).
    """

    n_queries: int
    n_clusters: int
    strata: tuple[_Stratum, ...]
    n_resamples: int
    seed: int

    @staticmethod
    def of(
        judged: JudgedQueries,
        *,
        scenes: Sequence[str] | None,
        by_scene: bool,
        n_resamples: int,
        random_state: object,
    ) -> Resampler:
        """Group the queries; see bootstrap_interval for the arguments."""
        check_integer(n_resamples, "n_resamples", minimum=1)
        names = judged.scenes if scenes is None else tuple(scenes)
        if scenes is not None and len(names) != len(judged):
            raise ValueError(
                f"scenes must have {len(judged)} names, one per query; got {len(names)}"
            )
        clusters = _cluster_numbers(names if by_scene else (), len(judged))
        has_truth = judged.n_positives > 0
        strata = []
        for rows in (np.flatnonzero(has_truth), np.flatnonzero(~has_truth)):
            known, cluster_of = np.unique(clusters[rows], return_inverse=True)
            strata.append(_Stratum(rows, cluster_of.reshape(-1), len(known)))
        return Resampler(
            n_queries=len(judged),
            n_clusters=strata[0].n_clusters,
            strata=tuple(strata),
            n_resamples=n_resamples,
            seed=check_seed(random_state),
        )

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield counts (r, q) int64, n_resamples rows in all."""
        generators = [np.random.default_rng([self.seed, part]) for part in range(len(self.strata))]
        step = max(1, _BLOCK // max(1, self.n_queries))
        for start in range(0, self.n_resamples, step):
            n = min(step, self.n_resamples - start)
            counts = np.zeros((n, self.n_queries), np.int64)
            for stratum, generator in zip(self.strata, generators):
                size = stratum.n_clusters
                if size:
                    drawn = generator.integers(0, size, size=(n, size))
                    drawn += size * np.arange(n)[:, None]
                    times = np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size)
                    counts[:, stratum.rows] = times[:, stratum.cluster_of]
            yield counts


def _cluster_numbers(scenes: Sequence[str], n_queries: int) -> NDArray[np.int64]:
    if not scenes:
        return np.arange(n_queries)
    number: dict[str, int] = {}
    return np.array(
        [
            number.setdefault(scene, row) if scene else row  # a scene is named by its first query
            for row, scene in enumerate(scenes)
        ],
        dtype=np.int64,
    )

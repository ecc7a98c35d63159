"""From how many inliers on an answer is to be believed, measured on photos that have none.

A local system's inliers depend on its keypoints: dense features reach a hundred by chance, sparse
ones hardly twenty. So each has its own `min_inliers`, chosen as the Verifier's default was: on
photos of things that the database does not show, so that few of them get an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_real, check_vector
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex
from delfsearch.verification.verifier import Verifier

_LEAST = 3  # what the Verifier needs for a map


def false_inliers(
    queries: Sequence[LocalFeatures],
    database: Sequence[LocalFeatures],
    *,
    exclude_ids: Sequence[Iterable[int] | None] | None = None,
    max_squared_distance: float | None = None,
    n_jobs: int | None = None,
    random_state: Any = 0,
) -> NDArray[np.int64]:
    """Return the inliers of the best answer to each query photo, none of which is right.

    queries : features of photos of which the database shows nothing.
    database : features of the photos to search, ids 0, 1, 2, ...
    exclude_ids : for each query the ids that must not answer (itself), or None.
    max_squared_distance : of the system, for DelfIndex. n_jobs : threads. random_state : of RANSAC.
    Returns (n,) int64, 0 where there is no answer of at least 3 inliers.
    Raises ValueError where dimensions differ or there is no photo.
    """
    index = DelfIndex(max_squared_distance=max_squared_distance, n_jobs=n_jobs).fit(database)
    verifier = Verifier(min_inliers=_LEAST, random_state=random_state, n_jobs=n_jobs)
    best = np.zeros(len(queries), np.int64)
    for i, features in enumerate(queries):
        excluded = None if exclude_ids is None else exclude_ids[i]
        hits = verifier.verify(index.query(features, exclude_ids=excluded))
        best[i] = hits[0].n_inliers if hits else 0
    return best


def suggest_min_inliers(counts: Any, *, false_rate: float = 0.01) -> int:
    """Return the lowest min_inliers at which at most false_rate of the photos get an answer.

    counts : (n,) from false_inliers, n >= 1. false_rate : in 0 ... 1.
    Returns at least 3. Raises ValueError where there is no count.
    """
    values = check_vector(counts, "counts", np.int64)
    if len(values) == 0:
        raise ValueError("counts must hold at least one photo's; got none")
    allowed = int(check_real(false_rate, "false_rate", minimum=0.0, maximum=1.0) * len(values))
    if allowed == len(values):
        return _LEAST
    # The best count that must stay below the threshold.
    return max(_LEAST, int(np.sort(values)[::-1][allowed]) + 1)

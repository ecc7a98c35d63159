"""Matches (index -> verification) and Hit (verification -> caller)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Matches:
    """Putative matches of one query photo, grouped by database photo, most votes first.

    image_ids : (c,) int64, the shortlisted database photos; ties are ordered by lower id. DelfIndex
        says what a vote is.
    offsets : (c + 1,) int64; photo i owns the rows offsets[i]:offsets[i + 1] of the arrays below.
    query_indices, database_indices : (m,) int32, feature number within the query photo and within
        the database photo.
    query_xy, database_xy : (m, 2) float32, their keypoints, pixels of the original photos.
    squared_distances : (m,) float32, squared L2 between the two descriptors.
    """

    image_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    query_indices: NDArray[np.int32]
    database_indices: NDArray[np.int32]
    query_xy: NDArray[np.float32]
    database_xy: NDArray[np.float32]
    squared_distances: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of shortlisted database photos."""
        return len(self.image_ids)

    @staticmethod
    def empty() -> Matches:
        """Return the matches of a query that nothing answers."""
        return Matches(
            image_ids=np.zeros(0, np.int64),
            offsets=np.zeros(1, np.int64),
            query_indices=np.zeros(0, np.int32),
            database_indices=np.zeros(0, np.int32),
            query_xy=np.zeros((0, 2), np.float32),
            database_xy=np.zeros((0, 2), np.float32),
            squared_distances=np.zeros(0, np.float32),
        )


@dataclass(frozen=True, eq=False)
class Hit:
    """One database photo that shows what the query shows, geometrically verified.

    id : int64 image id, stable for ever. score : higher is surer; the number of inliers.
    n_inliers : one-to-one matches that the affine explains within max_error.
    affine : (2, 3) float64, maps query pixels to database pixels.
    inliers : (n_inliers, 4) float32, rows (x_query, y_query, x_database, y_database).
    path, label : as stored in the index; None where it holds none.
    """

    id: int
    score: float
    n_inliers: int
    affine: NDArray[np.float64]
    inliers: NDArray[np.float32] = field(repr=False)
    path: str | None = None
    label: str | None = None

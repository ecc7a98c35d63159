"""Verifier: which shortlisted photos does one plausible affine map explain, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from delfsearch import _core
from delfsearch._validation import (
    check_integer,
    check_n_jobs,
    check_points,
    check_real,
    check_seed,
    check_vector,
)
from delfsearch.matches import Hit, Matches


@dataclass(frozen=True, eq=False)
class Verification:
    """What RANSAC found for each candidate of one Matches, before any is rejected.

    image_ids : (c,) int64, as in the Matches.
    n_inliers : (c,) int32, one-to-one inliers; 0 where no plausible map was found.
    affines : (c, 2, 3) float64, query to database pixels; the identity where n_inliers is 0.
    inlier_offsets : (c + 1,) int64; candidate i owns inlier_rows[offsets[i]:offsets[i + 1]].
    inlier_rows : rows of the Matches, rising within a candidate.
    n_iterations : (c,) int32, hypotheses drawn.
    """

    image_ids: NDArray[np.int64]
    n_inliers: NDArray[np.int32]
    affines: NDArray[np.float64] = field(repr=False)
    inlier_offsets: NDArray[np.int64] = field(repr=False)
    inlier_rows: NDArray[np.int64] = field(repr=False)
    n_iterations: NDArray[np.int32] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.image_ids)


class Verifier(BaseEstimator):  # type: ignore[misc]
    """Score each shortlisted photo by the one-to-one matches that one affine map explains.

    max_error : pixels of the database photo, > 0; a match is an inlier if the map sends its query
        keypoint this close to its database keypoint.
    min_inliers : photos with fewer are not returned, >= 3.
    min_separation : pixels, >= 0; keypoints of one photo this close together count as one. Dense
        features repeat a position over scales, and a repeated position is no new evidence.
    max_iterations : hypotheses drawn per candidate at most.
    confidence : probability, in (0, 1), of drawing the samples that a map with min_support inliers
        needs to be found; drawing stops there.
    min_support : the smallest number of inliers searched for so, >= 3.
    min_scale, max_scale : limits of sqrt(det) of the map; 0 < min_scale <= max_scale.
    max_stretch : largest ratio of its singular values, >= 1: shear and uneven scaling. Mirrored
        maps are always refused.
    max_rotation : degrees, largest turn of the map; 180 allows any.
    random_state : seed. The result for a photo depends on its matches, its id and this seed alone.
    n_jobs : threads over candidates, -1 for all cores; never changes a result.

    Nothing is learned: there is no fit. Defaults: docs/verification.md says how they were chosen.
    Source: Sec. 5.2 (RANSAC; score = inliers). Differs: a keypoint counts once on either side,
    implausible maps are refused, photos below min_inliers are rejected.
    """

    def __init__(
        self,
        *,
        max_error: float = 16.0,
        min_inliers: int = 100,
        min_separation: float = 1.0,
        max_iterations: int = 1024,
        confidence: float = 0.99,
        min_support: int = 6,
        min_scale: float = 0.125,
        max_scale: float = 8.0,
        max_stretch: float = 4.0,
        max_rotation: float = 180.0,
        random_state: Any = 0,
        n_jobs: int | None = 1,
    ) -> None:
        self.max_error = max_error
        self.min_inliers = min_inliers
        self.min_separation = min_separation
        self.max_iterations = max_iterations
        self.confidence = confidence
        self.min_support = min_support
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.max_stretch = max_stretch
        self.max_rotation = max_rotation
        self.random_state = random_state
        self.n_jobs = n_jobs

    def verify(self, matches: Matches, *, min_inliers: int | None = None) -> list[Hit]:
        """Return the photos that pass, best first; equal scores by lower id.

        matches : the putative matches of one query photo.
        min_inliers : replaces the constructor's for this call; the maps stay the same.
        Raises ValueError or TypeError where an array or a parameter is malformed.
        """
        return self.verify_many([matches], min_inliers=min_inliers)[0]

    def verify_many(
        self, matches: Sequence[Matches], *, min_inliers: int | None = None
    ) -> list[list[Hit]]:
        """Return `verify` of each query photo; threads share the candidates of all of them."""
        threshold = check_integer(
            self.min_inliers if min_inliers is None else min_inliers, "min_inliers", minimum=3
        )
        found = self._run(matches)
        return [_hits(m, v, threshold) for m, v in zip(matches, found)]

    def verify_all(self, matches: Matches) -> Verification:
        """Return the inliers of every candidate in the order of matches, none rejected.

        For evaluation: precision and recall need the scores that `min_inliers` would cut off.
        """
        return self._run([matches])[0]

    def _run(self, queries: Sequence[Matches]) -> list[Verification]:
        options = self._options()
        if not queries:
            return []
        checked = [_check_matches(matches) for matches in queries]
        # One call for all, so that threads stay busy across queries.
        starts = np.cumsum([0, *(len(m.squared_distances) for m in checked)])
        offsets = [np.zeros(1, np.int64)]
        offsets += [m.offsets[1:] + start for m, start in zip(checked, starts)]
        n_inliers, affines, inlier_offsets, inlier_rows, n_iterations = _core.ransac_affine(
            _join([m.query_xy for m in checked]),
            _join([m.database_xy for m in checked]),
            _join([m.squared_distances for m in checked]),
            np.concatenate(offsets),
            _join([m.image_ids for m in checked]),
            **options,
        )
        results, first = [], 0
        for matches, start in zip(checked, starts):
            last = first + len(matches.image_ids)
            begin, end = inlier_offsets[first], inlier_offsets[last]
            results.append(
                Verification(
                    image_ids=matches.image_ids,
                    n_inliers=n_inliers[first:last],
                    affines=affines[first:last],
                    inlier_offsets=inlier_offsets[first : last + 1] - begin,
                    inlier_rows=inlier_rows[begin:end] - start,
                    n_iterations=n_iterations[first:last],
                )
            )
            first = last
        return results

    def _options(self) -> dict[str, Any]:
        min_scale = check_real(self.min_scale, "min_scale", minimum=1e-6, maximum=1e6)
        return {
            "max_error": check_real(
                self.max_error, "max_error", minimum=0, maximum=1e6, exclusive_minimum=True
            ),
            "min_separation": check_real(
                self.min_separation, "min_separation", minimum=0, maximum=1e6
            ),
            "max_iterations": check_integer(
                self.max_iterations, "max_iterations", minimum=1, maximum=2**30
            ),
            "confidence": check_real(
                self.confidence,
                "confidence",
                minimum=0,
                maximum=float(np.nextafter(1, 0)),
                exclusive_minimum=True,
            ),
            "min_support": check_integer(self.min_support, "min_support", minimum=3, maximum=2**30),
            "min_scale": min_scale,
            "max_scale": check_real(self.max_scale, "max_scale", minimum=min_scale, maximum=1e6),
            "max_stretch": check_real(self.max_stretch, "max_stretch", minimum=1, maximum=1e6),
            "max_rotation_deg": check_real(self.max_rotation, "max_rotation", minimum=0),
            "seed": check_seed(self.random_state),
            "n_threads": check_n_jobs(self.n_jobs),
        }


def _join(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _check_matches(matches: Matches) -> Matches:
    """Return matches with every array coerced, or refuse them: the core trusts what it gets."""
    if not isinstance(matches, Matches):
        raise TypeError(f"matches must be a Matches; got {type(matches).__name__}")
    image_ids = check_vector(matches.image_ids, "image_ids", np.int64)
    offsets = check_vector(matches.offsets, "offsets", np.int64, n=len(image_ids) + 1)
    distances = check_vector(matches.squared_distances, "squared_distances", np.float32)
    m = len(distances)
    if offsets[0] != 0 or offsets[-1] != m or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"offsets must rise from 0 to the number of matches, {m}; "
            f"got {offsets[0]} to {offsets[-1]}"
        )
    return Matches(
        image_ids=image_ids,
        offsets=offsets,
        query_indices=check_vector(matches.query_indices, "query_indices", np.int32, n=m),
        database_indices=check_vector(matches.database_indices, "database_indices", np.int32, n=m),
        query_xy=_check_xy(matches.query_xy, "query_xy", m),
        database_xy=_check_xy(matches.database_xy, "database_xy", m),
        squared_distances=distances,
    )


def _check_xy(xy: Any, name: str, n: int) -> NDArray[np.float32]:
    points = check_points(xy, name)
    if len(points) != n:
        raise ValueError(f"{name} must have {n} rows, one per squared distance; got {len(points)}")
    return points


def _hits(matches: Matches, found: Verification, min_inliers: int) -> list[Hit]:
    passed = np.flatnonzero(found.n_inliers >= min_inliers)
    order = passed[np.lexsort((found.image_ids[passed], -found.n_inliers[passed]))]
    hits = []
    for i in order:
        rows = found.inlier_rows[found.inlier_offsets[i] : found.inlier_offsets[i + 1]]
        query_xy, database_xy = np.asarray(matches.query_xy), np.asarray(matches.database_xy)
        pairs = np.hstack([query_xy[rows], database_xy[rows]])
        hits.append(
            Hit(
                id=int(found.image_ids[i]),
                score=float(found.n_inliers[i]),
                n_inliers=int(found.n_inliers[i]),
                affine=found.affines[i].copy(),
                inliers=pairs.astype(np.float32, copy=False),
            )
        )
    return hits

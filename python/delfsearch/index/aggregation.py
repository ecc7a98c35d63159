"""From neighbours in several segments to Matches grouped by photo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from delfsearch import _core
from delfsearch.features import LocalFeatures
from delfsearch.index.segment import Segment
from delfsearch.index.selection import Part, Selection, SelectionCache
from delfsearch.matches import Matches

# Neighbours fetched beyond k while photos are left out of their own answers; queries that lose
# more than that to the excluded photos are asked again for twice as many.
_FIRST_EXTRA = 16

# Query descriptors searched at a time: enough to share every leaf's scan.
_BATCH = 4096

Neighbors = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class View:
    """The segments of an index at one moment, what their searchers find numbered through.

    That is rows, or photos (Segment.by_photo). Segment s owns the numbers bases[s]:bases[s + 1];
    photo p of all owns offsets[p]:offsets[p + 1].
    """

    segments: tuple[Segment, ...]
    bases: NDArray[np.int64]
    offsets: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    first_photos: NDArray[np.int32]
    selections: SelectionCache = field(default_factory=SelectionCache, compare=False, repr=False)

    @staticmethod
    def of(segments: Sequence[Segment]) -> View:
        """Number the rows, or photos, of segments through."""
        own = [segment.id_offsets for segment in segments]
        bases = np.zeros(len(segments) + 1, np.int64)
        np.cumsum([offsets[-1] for offsets in own], out=bases[1:])
        offsets = np.concatenate(
            [np.zeros(1, np.int64)] + [base + one[1:] for base, one in zip(bases, own)]
        )
        ids = [segment.image_ids for segment in segments]
        return View(
            segments=tuple(segments),
            bases=bases,
            offsets=offsets,
            image_ids=np.concatenate(ids) if ids else np.zeros(0, np.int64),
            first_photos=_core.first_photo_of_buckets(offsets),
        )

    @property
    def nbytes(self) -> int:
        """Bytes held in RAM, besides the segments."""
        arrays = (self.bases, self.offsets, self.image_ids, self.first_photos)
        return sum(array.nbytes for array in arrays)

    def select(self, ids: NDArray[np.int64]) -> Selection:
        """Return the photos with these ids, distinct and rising, for `neighbors`."""
        return tuple(Part.of(segment, ids) for segment in self.segments)

    def neighbors(
        self,
        descriptors: NDArray[np.float32],
        k: int,
        max_leaves: int,
        photo_starts: NDArray[np.int64],
        excluded: Sequence[NDArray[np.int64]],
        selection: Selection | None = None,
    ) -> Neighbors:
        """Find the k nearest rows of each descriptor over all segments.

        photo_starts : (q + 1,), the descriptors of query photo i are photo_starts[i]:[i + 1].
        excluded : for each query photo the image ids that must not answer; their features take no
        place among the k.
        selection : the photos that may answer, None for all; others take no place either.
        Returns squared_distances (m, k) float32, rows (m, k) int64.
        """
        parts = [None] * len(self.segments) if selection is None else selection
        lists = [
            self._segment_neighbors(s, descriptors, k, max_leaves, photo_starts, excluded, part)
            for s, (segment, part) in enumerate(zip(self.segments, parts))
            if segment.searcher is not None and not (part is not None and part.is_empty)
        ]
        if not lists:
            shape = (len(descriptors), k)
            return np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int64)
        if len(lists) == 1:
            return lists[0]
        rows, distances, _ = _core.merge_neighbors(
            np.stack([ids for _, ids in lists]),
            np.stack([squared for squared, _ in lists]),
            self.offsets,
            self.image_ids,
            self.first_photos,
        )
        return distances, rows

    def _segment_neighbors(
        self,
        s: int,
        descriptors: NDArray[np.float32],
        k: int,
        max_leaves: int,
        photo_starts: NDArray[np.int64],
        excluded: Sequence[NDArray[np.int64]],
        part: Part | None,
    ) -> Neighbors:
        segment, base = self.segments[s], self.bases[s]
        searcher, allowed = segment.searcher, None if part is None else part.prepared
        assert searcher is not None

        def search(queries: NDArray[np.float32], k: int) -> Neighbors:
            return searcher.query(queries, k=k, max_leaves=max_leaves, allowed=allowed)

        ranges = [_id_ranges(segment, ids, part) for ids in excluded]
        most = max((n_rows for _, _, n_rows in ranges), default=0)
        extra = min(_FIRST_EXTRA, most)
        squared, ids = search(descriptors, k + extra)
        if extra:
            kept = [
                _without(search, descriptors[a:b], ids[a:b], squared[a:b], k, *lost)
                for (a, b), lost in zip(pairwise(photo_starts.tolist()), ranges)
            ]
            squared = np.concatenate([one[0] for one in kept])
            ids = np.concatenate([one[1] for one in kept])
        if base:
            ids = np.where(ids >= 0, ids + base, -1)
        return squared, ids

    def group(
        self,
        features: LocalFeatures,
        squared_distances: NDArray[np.float32],
        rows: NDArray[np.int64],
        max_candidates: int,
        weigh_by_distance: bool,
        max_squared_distance: float | None = None,
    ) -> Matches:
        """Group the neighbours of one query photo by database photo.

        max_squared_distance : of features that were found again in photos (Segment.rematch).
        """
        image_ids, offsets, query_indices, database_indices, rows, squared = _core.group_by_photo(
            rows,
            squared_distances,
            self.offsets,
            self.image_ids,
            self.first_photos,
            min(max_candidates, len(self.image_ids)),
            weigh_by_distance,
        )
        xy = np.empty((len(rows), 2), np.float32)
        too_far = np.zeros(len(rows), bool)
        owner = np.searchsorted(self.bases, rows, side="right") - 1
        for s, segment in enumerate(self.segments):
            mine = np.flatnonzero(owner == s)
            if len(mine) == 0:
                continue
            own = rows[mine] - self.bases[s]
            if segment.by_photo:
                photos = own
                own, squared[mine] = segment.rematch(
                    np.ascontiguousarray(features.descriptors, np.float32),
                    query_indices[mine],
                    photos,
                )
                database_indices[mine] = own - segment.offsets[photos]
                if max_squared_distance is not None:
                    too_far[mine] = squared[mine] > max_squared_distance
            xy[mine] = segment.keypoints_xy[own]
        matches = Matches(
            image_ids=image_ids,
            offsets=offsets,
            query_indices=query_indices,
            database_indices=database_indices,
            query_xy=features.keypoints_xy[query_indices],
            database_xy=xy,
            squared_distances=squared,
        )
        return _only(matches, ~too_far) if too_far.any() else matches


def _only(matches: Matches, kept: NDArray[np.bool_]) -> Matches:
    """Keep some pairs, and the photos that have any left."""
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[matches.offsets]
    filled = np.diff(ends) > 0
    return Matches(
        image_ids=matches.image_ids[filled],
        offsets=np.concatenate([np.zeros(1, np.int64), ends[1:][filled]]),
        query_indices=matches.query_indices[kept],
        database_indices=matches.database_indices[kept],
        query_xy=matches.query_xy[kept],
        database_xy=matches.database_xy[kept],
        squared_distances=matches.squared_distances[kept],
    )


def batches(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split photos into runs of about _BATCH descriptors, at least one photo each."""
    start, total = 0, 0
    for i, count in enumerate(counts):
        if i > start and total + count > _BATCH:
            yield start, i
            start, total = i, 0
        total += count
    if start < len(counts):
        yield start, len(counts)


def _id_ranges(
    segment: Segment, image_ids: NDArray[np.int64], part: Part | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return where the ids of some photos that might answer begin and end, and their features."""
    at = np.searchsorted(segment.image_ids, image_ids)
    at = at[at < len(segment.image_ids)]
    at = at[np.isin(segment.image_ids[at], image_ids)]
    if part is not None:
        at = at[part.photos[at]]
    n_rows = int((segment.offsets[at + 1] - segment.offsets[at]).sum())
    return segment.id_offsets[at], segment.id_offsets[at + 1], n_rows


def _without(
    search: Callable[[NDArray[np.float32], int], Neighbors],
    descriptors: NDArray[np.float32],
    ids: NDArray[np.int64],
    squared: NDArray[np.float32],
    k: int,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    n_rows: int,
) -> Neighbors:
    """Keep k neighbours outside the excluded ids, fetching more where those took their places.

    n_rows : that have these ids.
    """
    limit = k + n_rows
    out_ids, out_squared, kept = _core.filter_neighbors(
        np.ascontiguousarray(ids), np.ascontiguousarray(squared), k, begin, end
    )
    fetched = ids.shape[1]
    # A list that came back full may hide further neighbours; one that did not has no more.
    short = np.flatnonzero((kept < k) & (ids[:, -1] >= 0))
    while len(short) and fetched < limit:
        fetched = min(limit, k + 2 * (fetched - k))
        squared, ids = search(descriptors[short], fetched)
        out_ids[short], out_squared[short], kept = _core.filter_neighbors(
            ids, squared, k, begin, end
        )
        short = short[(kept < k) & (ids[:, -1] >= 0)]
    return out_squared, out_ids

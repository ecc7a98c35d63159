"""A segment: the features of some photos and what searches them. Immutable but for deletions.

Photos lie in rising order of their ids and their features in the order they came, so a segment's
row order, with which a search breaks ties, is (image id, feature number). All segments of an index
share what their codes mean; therefore several segments answer as one would, and merging moves codes
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch import _core
from delfsearch._validation import check_n_jobs
from delfsearch.errors import IndexFormatError
from delfsearch.features import LocalFeatures
from delfsearch.index.engines import Engine, Prepared, Searcher, Shared

Arrays = dict[str, NDArray[Any]]
# Per-feature and per-photo arrays, with their dtype on disk and the number of columns.
_ROW_ARRAYS = {"keypoints_xy": ("<f4", 2), "scores": ("<f4", 0), "scales": ("<f4", 0)}
_PHOTO_ARRAYS = {"image_ids": "<i8", "offsets": "<i8"}


@dataclass(eq=False)
class Segment:
    """Photos with image_ids (p,) rising; photo i owns rows offsets[i]:offsets[i + 1].

    searcher : of all rows, None where there are none. prefix : of its arrays. removed : (p,) bool,
    photos deleted since.
    """

    image_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    keypoints_xy: NDArray[np.float32]
    scores: NDArray[np.float32]
    scales: NDArray[np.float32]
    searcher: Searcher | None
    prefix: str
    folder: str = ""
    removed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        if len(self.removed) != len(self.image_ids):
            self.removed = np.zeros(len(self.image_ids), bool)

    @property
    def n_rows(self) -> int:
        """Features, deleted ones included."""
        return len(self.keypoints_xy)

    @property
    def by_photo(self) -> bool:
        """Whether the searcher's ids are photos of this segment, not rows."""
        return self.searcher is not None and self.searcher.grouped

    @property
    def id_offsets(self) -> NDArray[np.int64]:
        """Which of the searcher's ids belong to photo i: id_offsets[i]:id_offsets[i + 1]."""
        return np.arange(len(self.image_ids) + 1) if self.by_photo else self.offsets

    @property
    def n_live_rows(self) -> int:
        """Features of the photos that are not deleted."""
        return int(np.diff(self.offsets)[~self.removed].sum())

    def arrays(self) -> Arrays:
        """Return what goes on disk."""
        searcher = {} if self.searcher is None else self.searcher.arrays()
        return {
            "image_ids": self.image_ids,
            "offsets": self.offsets,
            "keypoints_xy": self.keypoints_xy,
            "scores": self.scores,
            "scales": self.scales,
            **{self.prefix + name: array for name, array in searcher.items()},
        }

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, NDArray[Any]], folder: str, engine: Engine, shared: Shared | None
    ) -> Segment:
        """Take a segment back from disk, checking what the core relies on."""
        check_layout(arrays, folder)
        prefix = engine.prefix
        own = {
            name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)
        }
        n_rows = len(arrays["keypoints_xy"])
        if bool(own) != (n_rows > 0):
            raise IndexFormatError(
                f"{folder} is damaged: its arrays {prefix}* do not fit its {n_rows} rows"
            )
        searcher = None
        if own:
            try:
                searcher = engine.open(own, shared, folder)
            except (ValueError, KeyError, TypeError) as error:
                raise IndexFormatError(f"{folder} is damaged: {error}") from error
        plain = {name: arrays[name] for name in (*_PHOTO_ARRAYS, *_ROW_ARRAYS)}
        return Segment(searcher=searcher, prefix=prefix, folder=folder, **plain)

    def position(self, image_id: int) -> int | None:
        """Return which photo of this segment has the id; None where none has, or it is deleted."""
        at = int(np.searchsorted(self.image_ids, image_id))
        if at == len(self.image_ids) or self.image_ids[at] != image_id or self.removed[at]:
            return None
        return at

    def prepare(self, photos: NDArray[np.bool_]) -> Prepared | None:
        """Return what the searcher takes as allowed to find the rows of some photos (p,) alone."""
        if self.searcher is None:
            return None
        wanted = photos if self.by_photo else np.repeat(photos, np.diff(self.offsets))
        return self.searcher.prepare(wanted)

    def rematch(
        self,
        queries: NDArray[np.float32],
        query_indices: NDArray[np.int32],
        photos: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows (p,) that queries found in photos, and squared distances (p,).

        queries (m, d); query_indices (p,); photos (p,), those of a photo following each other. For
        searchers that name photos: see rematch.hpp.
        """
        assert self.searcher is not None
        quantizer = self.searcher.quantizer_
        return _core.rematch(
            quantizer.lower,
            quantizer.step,
            self.searcher.codes(),
            queries,
            query_indices,
            self.offsets[photos],
            self.offsets[photos + 1],
            check_n_jobs(self.searcher.n_jobs),
        )

    def remove(self, image_ids: NDArray[np.int64]) -> None:
        """Make photos of this segment disappear from every later query."""
        positions = np.searchsorted(self.image_ids, image_ids)
        if len(image_ids) and (
            positions.max() >= len(self.image_ids) or (self.image_ids[positions] != image_ids).any()
        ):
            raise IndexFormatError(f"{self.folder} is damaged: it lacks photos that it should hold")
        self.removed = self.removed.copy()
        self.removed[positions] = True
        gone = positions if self.by_photo else rows_of(self.offsets, positions)
        if self.searcher is not None and len(gone):
            self.searcher.remove(gone)


def check_layout(arrays: Mapping[str, NDArray[Any]], folder: str) -> None:
    """Refuse arrays of a segment or chunk whose dtypes, shapes or ranges are wrong."""
    for name in (*_PHOTO_ARRAYS, *_ROW_ARRAYS):
        if name not in arrays:
            raise IndexFormatError(f"{folder} is damaged: it has no array {name}")
    for name, dtype in _PHOTO_ARRAYS.items():
        if arrays[name].dtype.str != dtype or arrays[name].ndim != 1:
            raise IndexFormatError(f"{folder} is damaged: {name} must be 1-D {dtype}")
    offsets, image_ids = arrays["offsets"], arrays["image_ids"]
    n_rows = len(arrays["keypoints_xy"])
    for name, (dtype, columns) in _ROW_ARRAYS.items():
        shape = (n_rows, columns) if columns else (n_rows,)
        if arrays[name].dtype.str != dtype or arrays[name].shape != shape:
            raise IndexFormatError(f"{folder} is damaged: {name} must be {dtype} {shape}")
    if (
        len(offsets) != len(image_ids) + 1
        or offsets[0] != 0
        or offsets[-1] != n_rows
        or (np.diff(offsets) < 0).any()
    ):
        raise IndexFormatError(f"{folder} is damaged: offsets must rise from 0 to {n_rows}")
    if len(image_ids) and (image_ids[0] < 0 or (np.diff(image_ids) <= 0).any()):
        raise IndexFormatError(f"{folder} is damaged: image ids must rise from 0 or above")


def pack(image_ids: Iterable[int], features: Sequence[LocalFeatures], dimension: int) -> Arrays:
    """Lay the features of some photos out in rising order of id, descriptors included."""
    ids = np.array(list(image_ids), np.int64)
    order = np.argsort(ids, kind="stable")
    ordered = [features[i] for i in order]
    counts = np.array([len(f) for f in ordered], np.int64)
    filled = [f for f in ordered if len(f)]
    blank = [LocalFeatures.empty(dimension)]
    return {
        "image_ids": ids[order],
        "offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        "keypoints_xy": np.concatenate([f.keypoints_xy for f in filled or blank]),
        "scores": np.concatenate([f.scores for f in filled or blank]),
        "scales": np.concatenate([f.scales for f in filled or blank]),
        "descriptors": np.concatenate(
            [f.descriptors.astype(np.float32, copy=False) for f in filled or blank]
        ),
    }


def build_segment(
    chunks: Sequence[Mapping[str, NDArray[Any]]],
    engine: Engine,
    shared: Shared | None = None,
) -> Segment:
    """Build one segment of packed chunks whose ids rise from chunk to chunk.

    shared : what codes mean, settled before; None learns it from all rows, or, where there are more
    than the engine wants, from as many to twice as many of them, evenly spaced.
    """
    image_ids = _gather(chunks, "image_ids")
    counts = np.concatenate([np.diff(chunk["offsets"]) for chunk in chunks])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    searcher = None
    if offsets[-1] > 0:
        if shared is None:
            shared = engine.learn(_sample(chunks, int(offsets[-1]), engine))
        searcher = engine.build(_gather(chunks, "descriptors", shared.quantize), shared, counts)
    return Segment(
        image_ids=image_ids,
        offsets=offsets,
        keypoints_xy=_gather(chunks, "keypoints_xy"),
        scores=_gather(chunks, "scores"),
        scales=_gather(chunks, "scales"),
        searcher=searcher,
        prefix=engine.prefix,
    )


def _gather(
    chunks: Sequence[Mapping[str, NDArray[Any]]],
    name: str,
    change: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> NDArray[Any]:
    """Concatenate an array of all chunks, each changed first, with one chunk open at a time."""
    lengths = [len(chunk[name]) for chunk in chunks]
    whole: NDArray[Any] | None = None
    start = 0
    for chunk, length in zip(chunks, lengths):
        if length == 0 and (whole is not None or any(lengths)):
            continue  # no rows say nothing about the columns
        part = chunk[name] if change is None else change(chunk[name])
        if whole is None:
            whole = np.empty((sum(lengths), *part.shape[1:]), part.dtype)
        whole[start : start + length] = part
        start += length
    assert whole is not None  # there is at least one chunk
    return whole


def _sample(
    chunks: Sequence[Mapping[str, NDArray[Any]]], n_rows: int, engine: Engine
) -> NDArray[np.float32]:
    step = max(1, n_rows // engine.n_learned_from(n_rows))
    parts, start = [], 0
    for chunk in chunks:
        rows = chunk["descriptors"]
        if len(rows):
            parts.append(np.array(rows[(-start) % step :: step]))
        start += len(rows)
    return np.concatenate(parts)


def rows_of(offsets: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of some photos, photo after photo."""
    counts = offsets[positions + 1] - offsets[positions]
    ends = np.cumsum(counts)
    shift = np.repeat(offsets[positions] - (ends - counts), counts)
    rows: NDArray[np.int64] = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) + shift
    return rows

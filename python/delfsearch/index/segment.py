"""A segment: the features of some photos and the tree over them. Immutable but for deletions.

Photos lie in rising order of their ids and their features in the order they came, so a segment's
row order, with which the tree breaks ties, is (image id, feature number). All segments of an index
share one quantizer; therefore several segments answer as one would, and merging moves codes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import IndexFormatError
from delfsearch.features import LocalFeatures
from delfsearch.index.quantized_kdtree import QuantizedKDTree
from delfsearch.index.uniform_quantizer import UniformQuantizer

Arrays = dict[str, NDArray[Any]]
_TREE = "tree."
# Rows that the quantizer is learned from at least, where there are as many.
_QUANTIZER_ROWS = 2**18
# Per-feature and per-photo arrays, with their dtype on disk and the number of columns.
_ROW_ARRAYS = {"keypoints_xy": ("<f4", 2), "scores": ("<f4", 0), "scales": ("<f4", 0)}
_PHOTO_ARRAYS = {"image_ids": "<i8", "offsets": "<i8"}


@dataclass(frozen=True)
class TreeOptions:
    """How the trees of an index are built."""

    leaf_size: int
    clip_quantile: float
    n_jobs: int | None

    def new(self) -> QuantizedKDTree:
        """Return an unfitted tree."""
        return QuantizedKDTree(
            leaf_size=self.leaf_size, clip_quantile=self.clip_quantile, n_jobs=self.n_jobs
        )


@dataclass(eq=False)
class Segment:
    """Photos with image_ids (p,) rising; photo i owns rows offsets[i]:offsets[i + 1].

    tree : over all rows, None where there are none. removed : (p,) bool, photos deleted since.
    """

    image_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    keypoints_xy: NDArray[np.float32]
    scores: NDArray[np.float32]
    scales: NDArray[np.float32]
    tree: QuantizedKDTree | None
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
    def n_live_rows(self) -> int:
        """Features of the photos that are not deleted."""
        return int(np.diff(self.offsets)[~self.removed].sum())

    def arrays(self) -> Arrays:
        """Return what goes on disk."""
        tree = {} if self.tree is None else self.tree.arrays()
        return {
            "image_ids": self.image_ids,
            "offsets": self.offsets,
            "keypoints_xy": self.keypoints_xy,
            "scores": self.scores,
            "scales": self.scales,
            **{_TREE + name: array for name, array in tree.items()},
        }

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, NDArray[Any]], folder: str, options: TreeOptions
    ) -> Segment:
        """Take a segment back from disk, checking what the core relies on."""
        check_layout(arrays, folder)
        tree_arrays = {
            name[len(_TREE) :]: array for name, array in arrays.items() if name.startswith(_TREE)
        }
        n_rows = len(arrays["keypoints_xy"])
        if bool(tree_arrays) != (n_rows > 0):
            raise IndexFormatError(f"{folder} is damaged: its tree does not fit its {n_rows} rows")
        tree = None
        if tree_arrays:
            try:
                tree = QuantizedKDTree.from_arrays(tree_arrays, options.new().get_params())
            except (ValueError, KeyError, TypeError) as error:
                raise IndexFormatError(f"{folder} is damaged: {error}") from error
        plain = {name: arrays[name] for name in (*_PHOTO_ARRAYS, *_ROW_ARRAYS)}
        return Segment(tree=tree, folder=folder, **plain)

    def position(self, image_id: int) -> int | None:
        """Return which photo of this segment has the id; None where none has, or it is deleted."""
        at = int(np.searchsorted(self.image_ids, image_id))
        if at == len(self.image_ids) or self.image_ids[at] != image_id or self.removed[at]:
            return None
        return at

    def remove(self, image_ids: NDArray[np.int64]) -> None:
        """Make photos of this segment disappear from every later query."""
        positions = np.searchsorted(self.image_ids, image_ids)
        if len(image_ids) and (
            positions.max() >= len(self.image_ids) or (self.image_ids[positions] != image_ids).any()
        ):
            raise IndexFormatError(f"{self.folder} is damaged: it lacks photos that it should hold")
        self.removed = self.removed.copy()
        self.removed[positions] = True
        rows = _rows_of(self.offsets, positions)
        if self.tree is not None and len(rows):
            self.tree.remove(rows)


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
    options: TreeOptions,
    quantizer: UniformQuantizer | None = None,
) -> Segment:
    """Build one segment of packed chunks whose ids rise from chunk to chunk.

    quantizer : the frozen one; None learns it from all rows, or from 2**18 to 2**19 of them, evenly
    spaced, where there are more.
    """
    image_ids = _gather(chunks, "image_ids")
    counts = np.concatenate([np.diff(chunk["offsets"]) for chunk in chunks])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    tree = None
    if offsets[-1] > 0:
        if quantizer is None:
            quantizer = _learn_quantizer(chunks, int(offsets[-1]), options)
        tree = _tree_of(_gather(chunks, "descriptors", quantizer.quantize), quantizer, options)
    return Segment(
        image_ids=image_ids,
        offsets=offsets,
        keypoints_xy=_gather(chunks, "keypoints_xy"),
        scores=_gather(chunks, "scores"),
        scales=_gather(chunks, "scales"),
        tree=tree,
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


def merge_segments(segments: Sequence[Segment], options: TreeOptions) -> Segment:
    """Build one segment of the photos that are not deleted, from their codes."""
    ids = np.concatenate([segment.image_ids[~segment.removed] for segment in segments])
    order = np.argsort(ids, kind="stable")
    counts = np.concatenate([np.diff(segment.offsets)[~segment.removed] for segment in segments])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[order], dtype=np.int64)])
    # Rows of the live photos, segment by segment, then the same in the order of the ids.
    live = [_rows_of(segment.offsets, np.flatnonzero(~segment.removed)) for segment in segments]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    rows = _rows_of(starts, order)

    def gather(name: str) -> NDArray[Any]:
        parts = [getattr(segment, name)[at] for segment, at in zip(segments, live)]
        return np.ascontiguousarray(np.concatenate(parts)[rows])

    tree = None
    trees = [segment.tree for segment in segments]
    if len(rows):
        codes = np.concatenate(
            [tree.codes()[at] for tree, at in zip(trees, live) if tree is not None]
        )
        quantizer = next(tree.quantizer_ for tree in trees if tree is not None)
        tree = _tree_of(np.ascontiguousarray(codes[rows]), quantizer, options)
    return Segment(
        image_ids=np.ascontiguousarray(ids[order]),
        offsets=offsets,
        keypoints_xy=gather("keypoints_xy"),
        scores=gather("scores"),
        scales=gather("scales"),
        tree=tree,
    )


def _tree_of(
    codes: NDArray[np.uint8], quantizer: UniformQuantizer, options: TreeOptions
) -> QuantizedKDTree:
    return QuantizedKDTree.from_codes(codes, quantizer, **options.new().get_params())


def _learn_quantizer(
    chunks: Sequence[Mapping[str, NDArray[Any]]], n_rows: int, options: TreeOptions
) -> UniformQuantizer:
    step = max(1, n_rows // _QUANTIZER_ROWS)
    parts, start = [], 0
    for chunk in chunks:
        rows = chunk["descriptors"]
        if len(rows):
            parts.append(np.array(rows[(-start) % step :: step]))
        start += len(rows)
    return UniformQuantizer.learn(np.concatenate(parts), clip_quantile=options.clip_quantile)


def _rows_of(offsets: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of some photos, photo after photo."""
    counts = offsets[positions + 1] - offsets[positions]
    ends = np.cumsum(counts)
    shift = np.repeat(offsets[positions] - (ends - counts), counts)
    rows: NDArray[np.int64] = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) + shift
    return rows

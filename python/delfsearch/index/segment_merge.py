"""One segment of several, without what was deleted from them: codes move, nothing is made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.index.engines import Engine, Source
from delfsearch.index.segment import Segment, rows_of
from delfsearch.storage.array_writer import ArrayWriter

# Rows copied at a time.
_ROWS_AT_ONCE = 1 << 19
_PHOTOS_AT_ONCE = 1 << 10


@dataclass(frozen=True)
class _Order:
    """The live photos of segments in rising order of id: photo i is photo at[i] of source[i].

    offsets (p + 1,): rows of each.
    """

    segments: Sequence[Segment]
    image_ids: NDArray[np.int64]
    source: NDArray[np.int64]
    at: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @staticmethod
    def of(segments: Sequence[Segment]) -> _Order:
        live = [np.flatnonzero(~segment.removed) for segment in segments]
        ids = np.concatenate([s.image_ids[photos] for s, photos in zip(segments, live)])
        order = np.argsort(ids, kind="stable")
        counts = np.concatenate([np.diff(s.offsets)[photos] for s, photos in zip(segments, live)])
        source = np.repeat(np.arange(len(segments)), [len(photos) for photos in live])
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(counts[order], out=offsets[1:])
        return _Order(segments, ids[order], source[order], np.concatenate(live)[order], offsets)

    def gather(
        self, rows: Callable[[Segment], NDArray[Any]], dtype: Any, shape: tuple[int, ...]
    ) -> Iterator[NDArray[Any]]:
        """Yield the rows of an array of all segments in the new order, some at a time."""
        begin, n = 0, len(self.image_ids)
        while begin < n:
            limit = self.offsets[begin] + _ROWS_AT_ONCE
            end = max(begin + 1, int(np.searchsorted(self.offsets, limit, side="right")) - 1)
            part = np.empty((int(self.offsets[end] - self.offsets[begin]), *shape), dtype)
            source = self.source[begin:end]
            for s in np.unique(source):
                mine = np.flatnonzero(source == s) + begin
                segment = self.segments[s]
                old = rows_of(segment.offsets, self.at[mine])
                if len(old) == 0:
                    continue
                new = rows_of(self.offsets, mine) - self.offsets[begin]
                array = rows(segment)
                if old[-1] - old[0] == len(old) - 1 and len(new) == len(part):
                    part[:] = array[old[0] : old[-1] + 1]
                else:
                    part[new] = array[old]
            yield part
            begin = end

    def source_of(self, s: int) -> Source:
        """Say what becomes of the rows and photos of segment s."""
        segment = self.segments[s]
        assert segment.searcher is not None
        mine = np.flatnonzero(self.source == s)
        moved = len(mine) == len(segment.image_ids) and (
            len(mine) == 0 or mine[-1] - mine[0] == len(mine) - 1
        )
        if moved and len(mine):
            first = int(mine[0] if segment.by_photo else self.offsets[mine[0]])
            return Source(segment.searcher, None, first)
        if segment.by_photo:
            numbers = np.full(len(segment.image_ids), -1, np.int32)
            numbers[self.at[mine]] = mine
        else:
            numbers = np.full(segment.n_rows, -1, np.int32)  # a segment has fewer than 2^31
            for begin in range(0, len(mine), _PHOTOS_AT_ONCE):
                some = mine[begin : begin + _PHOTOS_AT_ONCE]
                old = rows_of(segment.offsets, self.at[some])
                numbers[old] = rows_of(self.offsets, some)
        return Source(segment.searcher, numbers, 0)


def merge_segments(segments: Sequence[Segment], engine: Engine, sink: ArrayWriter) -> None:
    """Write the arrays of one segment of all photos that are not deleted."""
    order = _Order.of(segments)
    sink.write("image_ids", order.image_ids)
    sink.write("offsets", order.offsets)
    for name, shape in (("keypoints_xy", (2,)), ("scores", ()), ("scales", ())):
        sink.append(name, np.empty((0, *shape), np.float32))
        for part in order.gather(attrgetter(name), np.float32, shape):
            sink.append(name, part)
    sources = [order.source_of(s) for s, one in enumerate(segments) if one.searcher is not None]
    n_rows, n_photos = int(order.offsets[-1]), len(order.image_ids)
    if n_rows == 0:
        return
    dimension = sources[0].searcher.n_features_in_

    def codes() -> Iterator[NDArray[np.uint8]]:
        return order.gather(_codes_of, np.uint8, (dimension,))

    engine.merge(sources, codes, n_rows, n_photos, _Prefixed(sink, engine.prefix))


def _codes_of(segment: Segment) -> NDArray[np.uint8]:
    assert segment.searcher is not None
    return segment.searcher.codes()


@dataclass(frozen=True)
class _Prefixed:
    """A writer whose arrays have names with a prefix."""

    sink: ArrayWriter
    prefix: str

    def append(self, name: str, rows: NDArray[Any]) -> None:
        self.sink.append(self.prefix + name, rows)

    def write(self, name: str, array: NDArray[Any]) -> None:
        self.sink.write(self.prefix + name, array)

"""The segments of an index and how they change: appended, thinned out, merged.

A log-structured merge: additions make small segments, and a segment is merged with those not much
larger than itself, so n photos added one by one leave O(log n) segments and each is rewritten
O(log n) times. All segments share what their codes mean, so what a query finds does not depend on
how the photos are spread over them (as long as it visits all leaves).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.errors import IndexFormatError
from delfsearch.index.aggregation import View
from delfsearch.index.engines import EXACT, Engine, Shared
from delfsearch.index.inverted_file import MAX_ROWS
from delfsearch.index.segment import Segment, build_segment
from delfsearch.index.segment_merge import merge_segments
from delfsearch.storage import tables
from delfsearch.storage.arrays import array_bytes
from delfsearch.storage.records import ImageRecord
from delfsearch.storage.store import IndexStore

# The folder of what the segments share.
SHARED = "codes"
# Catalog value: codes were learned from photos given for that, so that they stay without features.
TRAINED = "trained"
# Merged segments of at most so many rows wait for the commit in RAM.
_RAM_ROWS = 1 << 20


class SegmentSet:
    """The segments that a store holds. Reading `view` is safe beside a change: it is replaced."""

    def __init__(self, store: IndexStore, engine: Engine) -> None:
        self.store = store
        self.engine = engine
        self.view = View.of([])

    def configure(self, engine: Engine) -> None:
        """Build from now on so; threads also for the searchers that are there."""
        self.engine = engine
        for segment in self.view.segments:
            if segment.searcher is not None:
                engine.configure(segment.searcher)

    def load(self) -> None:
        """Map the segments that the catalog names, with its deletions applied.

        Raises IndexFormatError where they do not hold what the image table says.
        """
        catalog = self.store.catalog
        segments = []
        shared = self._load_shared()
        for folder in self.store.folders("segment"):
            segment = Segment.from_arrays(self.store.arrays(folder), folder, self.engine, shared)
            removed = catalog.select("deletions", "folder = ?", (folder,))
            if removed:
                segment.remove(np.array([image_id for _, image_id in removed], np.int64))
            segments.append(segment)
        counts = [(int((~segment.removed).sum()), segment.n_live_rows) for segment in segments]
        photos, rows = (sum(count[i] for count in counts) for i in (0, 1))
        if photos != catalog.scalar("SELECT count(*) FROM images") or rows != catalog.scalar(
            "SELECT coalesce(sum(n_features), 0) FROM images"
        ):
            raise IndexFormatError(
                f"{self.store.path} is damaged: its segments hold {photos} photos with {rows} "
                "features and its image table does not say so"
            )
        dimensions = {s.searcher.n_features_in_ for s in segments if s.searcher is not None}
        if not dimensions <= {catalog.value("dimension")}:
            raise IndexFormatError(f"{self.store.path} is damaged: segments differ in dimension")
        self.view = View.of(segments)

    @property
    def n_live_rows(self) -> int:
        """Features that were not removed."""
        return sum(segment.n_live_rows for segment in self.view.segments)

    def _shared_of_segments(self) -> Shared | None:
        searchers = [s.searcher for s in self.view.segments if s.searcher is not None]
        return self.engine.shared_of(searchers[0]) if searchers else None

    def _load_shared(self) -> Shared | None:
        folders = self.store.folders(SHARED)
        if len(folders) > 1:
            raise IndexFormatError(f"{self.store.path} is damaged: it has {len(folders)} codes")
        if not folders:
            return None
        return self.engine.open_shared(self.store.arrays(folders[0]), folders[0])

    @property
    def has_rows(self) -> bool:
        """Whether there is any feature, deleted ones included; then what codes mean is settled."""
        return any(segment.n_rows for segment in self.view.segments)

    def append(
        self,
        chunk: Mapping[str, NDArray[Any]],
        records: Sequence[ImageRecord],
        replaced: NDArray[np.int64] | None = None,
    ) -> None:
        """Make a segment of packed features and show it, in place of the photos replaced."""
        # Where no feature is left, what codes mean is learned anew.
        shared = self._shared_of_segments()
        if shared is None and self.store.catalog.value(TRAINED, False):
            shared = self._load_shared()
        segment = build_segment([chunk], self.engine, shared)
        if replaced is not None:
            self.forget(replaced)
        store_segment(self.store, segment, self.engine, learned=shared is None)
        tables.insert_records(self.store, records)
        self.view = View.of([*self.view.segments, segment])

    def locate(self, image_id: int) -> tuple[Segment, int]:
        """Return the segment that holds a photo, and its position there."""
        for segment in self.view.segments:
            at = segment.position(image_id)
            if at is not None:
                return segment, at
        raise IndexFormatError(f"the index is damaged: no segment holds photo {image_id}")

    def forget(self, image_ids: Iterable[int] | NDArray[np.int64]) -> None:
        """Delete photos from the image table and their features from every later query."""
        catalog = self.store.catalog
        by_segment: dict[str, list[int]] = {}
        for image_id in map(int, image_ids):
            segment, _ = self.locate(image_id)
            by_segment.setdefault(segment.folder, []).append(image_id)
            catalog.delete("images", "id = ?", (image_id,))
        for segment in self.view.segments:
            if segment.folder in by_segment:
                removed = by_segment[segment.folder]
                segment.remove(np.array(removed, np.int64))
                catalog.insert("deletions", [(segment.folder, image_id) for image_id in removed])

    def merge_small(self, factor: float) -> None:
        """Merge the smallest segments with all up to factor times their size; 0 merges none.

        A larger segment of which more than half is deleted is rebuilt alone.
        """
        if factor == 0:
            return
        # More rows than a segment holds are not merged.
        by_size = sorted(self.view.segments, key=lambda s: (s.n_live_rows, s.folder))
        group = by_size[:1]
        size = max(1, group[0].n_live_rows) if group else 0
        for segment in by_size[1:]:
            if segment.n_live_rows > factor * size or segment.n_live_rows + size > MAX_ROWS:
                break
            group.append(segment)
            size += segment.n_live_rows
        if len(group) > 1:
            self.merge(group)
        for segment in by_size:
            if segment in self.view.segments and 2 * segment.n_live_rows < segment.n_rows:
                self.merge([segment])

    def merge(self, segments: Sequence[Segment]) -> None:
        """Rebuild some segments as one, without what was deleted from them."""
        n_rows = sum(segment.n_live_rows for segment in segments)
        if n_rows > MAX_ROWS:
            raise ValueError(
                f"merge needs at most {MAX_ROWS} features in all; the index has {n_rows}: leave "
                "its segments as they are"
            )
        kept = [segment for segment in self.view.segments if segment not in segments]
        if not all(segment.removed.all() for segment in segments):
            shared = self._shared_of_segments()
            kept.append(merge_stored(self.store, segments, self.engine, shared))
        for segment in segments:
            self.store.drop_folder(segment.folder)
        self.view = View.of(kept)

    def memory_usage(self) -> dict[str, float]:
        """Return bytes by part, see DelfIndex.memory_usage."""
        segments = self.view.segments
        searchers = [s.searcher for s in segments if s.searcher is not None]
        parts: dict[str, float] = {}
        for searcher in searchers:
            for name, n_bytes in searcher.memory_usage().items():
                parts[name] = parts.get(name, 0) + n_bytes
        shared = self.engine.shared_arrays(self.engine.shared_of(searchers[0])) if searchers else {}
        if shared:
            parts["codebooks"] = self.engine.shared_bytes(self.engine.shared_of(searchers[0]))
        parts["photos"] = self.view.nbytes + sum(
            segment.image_ids.nbytes + segment.offsets.nbytes for segment in segments
        )
        if kept := self.view.selections.nbytes:
            parts["filters"] = kept
        in_memory = sum(n_bytes for name, n_bytes in parts.items() if name != EXACT)
        parts["keypoints"] = sum(segment.keypoints_xy.nbytes for segment in segments)
        parts["scores_and_scales"] = sum(s.scores.nbytes + s.scales.nbytes for s in segments)
        n_rows = max(1, sum(segment.n_rows for segment in segments))
        total = sum(parts.values())
        folders = [s.folder for s in segments] + (self.store.folders(SHARED) if shared else [])
        mapped = [folder for folder in folders if self.store.is_stored(folder)]
        return {
            **parts,
            "in_memory": in_memory,
            "total": total,
            "mapped": sum(array_bytes(self.store.arrays(folder)) for folder in mapped),
            "in_memory_per_descriptor": in_memory / n_rows,
            "bytes_per_descriptor": total / n_rows,
        }


def merge_stored(
    store: IndexStore, segments: Sequence[Segment], engine: Engine, shared: Shared | None
) -> Segment:
    """Put into a store the one segment of all photos of some, and open it."""
    small = sum(segment.n_live_rows for segment in segments) <= _RAM_ROWS
    folder = store.write_folder(
        "segment", lambda sink: merge_segments(segments, engine, sink), in_ram=small
    )
    return Segment.from_arrays(store.arrays(folder), folder, engine, shared)


def store_segment(store: IndexStore, segment: Segment, engine: Engine, *, learned: bool) -> None:
    """Put a segment into a store; learned : with what its codes mean, in place of an older one."""
    if learned and segment.searcher is not None:
        arrays = engine.shared_arrays(engine.shared_of(segment.searcher))
        for folder in store.folders(SHARED):
            store.drop_folder(folder)
        if arrays is not None:
            store.add_folder(SHARED, arrays)
    segment.folder = store.add_folder("segment", segment.arrays())

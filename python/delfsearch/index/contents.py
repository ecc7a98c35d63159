"""What an index holds, beside its search: photos, their features, notes and attachments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from delfsearch.errors import IndexFormatError
from delfsearch.features import LocalFeatures
from delfsearch.index.segment_set import SegmentSet
from delfsearch.storage import tables
from delfsearch.storage.records import ImageRecord, NotIndexed
from delfsearch.storage.store import IndexStore


class IndexContents:
    """The half of DelfIndex that reads: a store and the segments in it."""

    _store: IndexStore
    _segments: SegmentSet

    def __len__(self) -> int:
        """Return the number of photos."""
        return int(self._catalog_scalar("SELECT count(*) FROM images"))

    @property
    def n_descriptors(self) -> int:
        """Descriptors of all photos that are in the index."""
        return int(self._catalog_scalar("SELECT coalesce(sum(n_features), 0) FROM images"))

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all photos, rising, (n,) int64."""
        self._check_fitted()
        return np.array(self._store.catalog.column("images", "id"), np.int64)

    @property
    def path(self) -> Path | None:
        """The folder it was saved to or loaded from, None while it lives in RAM."""
        self._check_fitted()
        return self._store.path

    def images(self) -> Iterator[ImageRecord]:
        """Yield what is known of each photo, in the order of ids."""
        self._check_fitted()
        return map(ImageRecord.from_row, self._store.catalog.iterate("images"))

    def image(self, image_id: int) -> ImageRecord:
        """Return what is known of a photo; KeyError where it is not in the index."""
        self._check_fitted()
        rows = self._store.catalog.select("images", "id = ?", (int(image_id),))
        if not rows:
            raise KeyError(f"no photo with id {image_id} in the index: ids must be among its `ids`")
        return ImageRecord.from_row(rows[0])

    def find(
        self, *, path: str | None = None, content_hash: str | None = None
    ) -> list[ImageRecord]:
        """Return the photos with this path or this content hash, in the order of ids."""
        self._check_fitted()
        column, value = ("path", path) if path is not None else ("content_hash", content_hash)
        rows = self._store.catalog.select("images", f"{column} = ?", (value,))
        return [ImageRecord.from_row(row) for row in rows]

    def features_of(self, image_id: int) -> LocalFeatures:
        """Return the features of a photo, descriptors decoded from their 8-bit codes (float32)."""
        record = self.image(image_id)
        segment, at = self._segments.locate(record.id)
        start, stop = int(segment.offsets[at]), int(segment.offsets[at + 1])
        rows = slice(start, stop)
        descriptors = np.zeros((0, self.dimension_), np.float32)
        if segment.searcher is not None:
            descriptors = segment.searcher.quantizer_.decode(segment.searcher.codes(start, stop))
        try:
            return LocalFeatures(
                keypoints_xy=segment.keypoints_xy[rows],
                descriptors=descriptors,
                scores=segment.scores[rows],
                scales=segment.scales[rows],
                image_size=(record.width, record.height),
            )
        except ValueError as error:
            raise IndexFormatError(
                f"photo {image_id} of {self.path or 'the index'} is damaged: {error}; see check()"
            ) from error

    def memory_usage(self) -> dict[str, float]:
        """Return bytes by part.

        codes_and_tree : of method "kdtree". codes, ids, leaves, codebooks : of "ivf"; exact : its
        8-bit descriptors, read for reranking, merging and features_of alone. photos, keypoints,
        scores_and_scales. filters : what is kept of the last `where` for the next queries, if
        anything. total : all of them.
        in_memory : what a search reads throughout: all but exact, keypoints (read for the shortlist
        alone) and scores_and_scales. mapped : how many of all bytes are memory-mapped from disk and
        need RAM only while they are used.
        in_memory_per_descriptor, bytes_per_descriptor : of in_memory and of total.
        The image table (paths, labels, metadata) stays in its file and is not counted.
        """
        self._check_fitted()
        return self._segments.memory_usage()

    def check(self) -> list[str]:
        """Compare every byte on disk with its checksum; returns what is damaged, [] if nothing."""
        self._check_fitted()
        return self._store.problems()

    def attach(
        self, title: str, parameters: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Keep parameters (JSON) and arrays with the index, replacing what had the same title.

        ImageSearch keeps the extractor's frozen state so.
        """
        self._check_fitted()
        tables.attach(self._store, title, parameters, arrays)

    def attachment(self, title: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """Return what was attached under a title, or None."""
        self._check_fitted()
        return tables.attachment(self._store, title)

    def set_not_indexed(self, entries: Iterable[NotIndexed]) -> None:
        """Note photos that were refused or are duplicates; indexing one later strikes the note."""
        self._check_fitted()
        tables.note_not_indexed(self._store, entries)

    def not_indexed(self) -> list[NotIndexed]:
        """Return the photos noted so, in the order of their paths."""
        self._check_fitted()
        return [NotIndexed(*row) for row in self._store.catalog.select("not_indexed")]

    @property
    def dimension_(self) -> int:
        """Columns of the descriptors."""
        self._check_fitted()
        return int(self._store.catalog.value("dimension"))

    def _catalog_scalar(self, sql: str) -> Any:
        self._check_fitted()
        return self._store.catalog.scalar(sql)

    def _check_fitted(self) -> None:
        if not hasattr(self, "_store"):
            raise NotFittedError("this DelfIndex holds nothing yet; call fit or load first")

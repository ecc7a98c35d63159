"""Taking photos in one by one: into a new index (resumable on disk), or into an existing one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.features import LocalFeatures
from delfsearch.index.checks import check_features, check_photos
from delfsearch.index.delf_index import DelfIndex
from delfsearch.index.engines import Engine, ListEngine, Shared
from delfsearch.index.inverted_file import MAX_ROWS
from delfsearch.index.segment import Segment, build_segment, check_layout, pack, rows_in, sample
from delfsearch.index.segment_set import SHARED, TRAINED, merge_stored, store_segment
from delfsearch.storage import tables
from delfsearch.storage.catalog import FILE_NAME
from delfsearch.storage.records import NotIndexed
from delfsearch.storage.store import BUILDING, IndexStore, check_target

# A commit costs milliseconds and the features of one photo often seconds: what is older than a
# minute is made safe with the next photo.
_COMMIT_PHOTOS = 256
_COMMIT_SECONDS = 60.0
# Features that wait in RAM, some 200 bytes each, or, where codes are known, on disk in float32.
_COMMIT_ROWS = 1 << 21


class _Intake:
    """What IndexBuilder and IndexUpdater share: photos wait in RAM until the next commit."""

    def __init__(self, store: IndexStore) -> None:
        self._store = store
        self._photos: list[LocalFeatures] = []
        self._metadata: list[Mapping[str, Any]] = []
        self._refused: list[NotIndexed] = []
        self._duplicates: list[tuple[str, str, str]] = []
        self._since = time.monotonic()

    def add(self, features: LocalFeatures, metadata: Mapping[str, Any]) -> None:
        """Take one photo in; metadata must hold its path and content_hash."""
        self._photos.append(features)
        self._metadata.append(metadata)

    def note_refused(self, name: str, reason: str, content_hash: str | None) -> None:
        """Take note of a photo that cannot be indexed."""
        self._refused.append(NotIndexed(name, reason, None, content_hash))

    def note_duplicate(self, name: str, content_hash: str, first_name: str) -> None:
        """Take note of a photo with the content of another, which came before it."""
        self._duplicates.append((name, content_hash, first_name))

    def first_with_content(self, content_hash: str) -> str | None:
        """Return the name of the committed photo with this content, or None."""
        return tables.first_with_content(self._store, content_hash)

    @property
    def due(self) -> bool:
        """Whether it is time to commit."""
        return self._n_notes >= _COMMIT_PHOTOS or self.late

    @property
    def late(self) -> bool:
        """Whether something has waited for long."""
        return self._n_notes > 0 and time.monotonic() - self._since > _COMMIT_SECONDS

    @property
    def _n_notes(self) -> int:
        return len(self._photos) + len(self._refused) + len(self._duplicates)

    def _taken_photos(self) -> tuple[list[LocalFeatures], list[Mapping[str, Any]]]:
        taken = (self._photos, self._metadata)
        self._photos, self._metadata = [], []
        self._since = time.monotonic()
        return taken

    def _write_notes(self) -> None:
        """Write the notes into the catalog, which must hold the photos by now."""
        notes = self._refused
        for name, content_hash, first_name in self._duplicates:
            first = tables.image_with_content(self._store, content_hash)
            if first is None:
                reason = f"it has the same content as {first_name}, which could not be indexed"
                notes.append(NotIndexed(name, reason))
            else:
                notes.append(NotIndexed(name, f"it has the same content as {first.path}", first.id))
        tables.note_not_indexed(self._store, notes)
        self._refused, self._duplicates = [], []


class IndexBuilder(_Intake):
    """Builds a new index from photos that come one by one, ids 0, 1, 2, ... in that order.

    index : an unfitted DelfIndex; `finish` fits it. path : None builds in RAM. A folder is written
    chunk by chunk (float32 descriptors, so four times the size of the finished index; after `learn`
    some millions of features at most): a builder that opens the folder of one that was interrupted
    goes on where it stopped, and the finished index has the same bytes as if nothing had happened.
    Posting lists are built some millions of descriptors at a time and merged.
    Raises FileExistsError where the folder holds a complete index or something else.
    """

    def __init__(self, index: DelfIndex, path: Path | None) -> None:
        index._check_parameters()
        self._index = index
        super().__init__(_open_building(path))
        self._n_waiting = 0
        self._n_rows = int(
            self._store.catalog.scalar("SELECT coalesce(sum(n_features), 0) FROM images")
        )
        if self._store.folders(SHARED) and self._store.catalog.value("index") is not None:
            try:
                index._check_begun(self._store)
            except ValueError:
                self._store.close()
                raise

    def add(self, features: LocalFeatures, metadata: Mapping[str, Any]) -> None:
        """Take one photo in; metadata must hold its path and content_hash."""
        if self._n_rows + len(features) > MAX_ROWS:
            raise ValueError(
                f"features must be at most {MAX_ROWS} where an index is built; this photo would "
                "make them more. Build an index of fewer photos and add the others to it"
            )
        self._n_rows += len(features)
        self._n_waiting += len(features)
        super().add(features, metadata)

    @property
    def n_photos(self) -> int:
        """Photos that are safe."""
        return int(self._store.catalog.scalar("SELECT count(*) FROM images"))

    @property
    def n_waiting(self) -> int:
        """Features of the photos that wait for the next commit."""
        return self._n_waiting

    @property
    def known_names(self) -> set[str]:
        """Names of the photos that earlier runs dealt with."""
        catalog = self._store.catalog
        return {*catalog.column("images", "path"), *catalog.column("not_indexed", "path")}

    def attach(
        self, title: str, parameters: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Keep parameters and arrays with the index, at once on disk."""
        tables.attach(self._store, title, parameters, arrays)
        self._store.commit()

    def attachment(self, title: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """Return what is attached under a title, or None."""
        return tables.attachment(self._store, title)

    def learn(self, training: list[LocalFeatures]) -> None:
        """Learn what codes mean from photos that need not be indexed; method "ivf" alone.

        From then on photos are encoded some millions of features at a time, and only so many wait
        on disk in float32. An interrupted build keeps what it has learned.
        """
        index, store = self._index, self._store
        if store.catalog.value(TRAINED, False):
            return  # by the run that was interrupted
        rows = [{"descriptors": photo.descriptors} for photo in training if len(photo)]
        if not rows:
            raise ValueError("training must hold at least one photo with features; got none")
        if store.folders("chunk") or store.folders(SHARED):
            raise ValueError(
                f"training must be given from the first photo on; {store.path} holds photos that "
                "were taken in without it. Go on without, or build into another folder"
            )
        store.catalog.set_value("dimension", self._dimension(training))
        engine = index._choose(0, store)
        n_rows = sum(map(len, training))
        matrix = sample(rows, n_rows, engine).astype(np.float32, copy=False)
        arrays = engine.shared_arrays(engine.learn(matrix))
        assert arrays is not None
        store.add_folder(SHARED, arrays)
        store.catalog.set_value(TRAINED, True)
        index._store_parameters(store)
        store.commit()

    def _engine(self, n_rows: int) -> Engine:
        """Return the engine of parts that are there, or choose one."""
        catalog = self._store.catalog
        if not self._store.folders(SHARED):
            return self._index._choose(n_rows, self._store)
        return self._index._engine(catalog.value("method"), catalog.value("postings"))

    def _learned(self, engine: Engine) -> Shared | None:
        folders = self._store.folders(SHARED)
        if not folders:
            return None
        return engine.open_shared(self._store.arrays(folders[0]), folders[0])

    def commit(self) -> None:
        """Make what was taken in durable."""
        photos, metadata = self._taken_photos()
        self._n_waiting = 0
        if photos:
            first = int(self._store.catalog.value("next_id", 0))
            image_ids = range(first, first + len(photos))
            dimension = self._dimension(photos)
            tables.insert_records(self._store, tables.make_records(image_ids, photos, metadata))
            self._store.add_folder("chunk", pack(image_ids, photos, dimension))
            if self._store.folders(SHARED):
                self._encode_many()
        self._write_notes()
        self._store.commit()

    def _encode_many(self) -> None:
        """Make a part of all chunks, once they are large together."""
        folders = self._store.folders("chunk")
        chunks = [self._store.lazy_arrays(folder) for folder in folders]
        if sum(map(rows_in, chunks)) < _COMMIT_ROWS:
            return
        engine = self._engine(0)
        shared = self._learned(engine)
        # An interrupted build that has learned by now may have left very many.
        for group in _in_parts(chunks, engine.part_rows):
            self._add_part(chunks[group], folders[group], engine, shared)
            self._store.commit()

    def _add_part(
        self,
        chunks: Sequence[Mapping[str, NDArray[Any]]],
        folders: Sequence[str],
        engine: Engine,
        shared: Shared | None,
    ) -> None:
        """Encode chunks, and drop them."""
        # Without leaves codes keep the order of the photos, wherever parts begin.
        assert isinstance(engine, ListEngine)
        segment = build_segment(chunks, replace(engine, leaf_size=0), shared)
        self._store.add_folder("part", segment.arrays())
        for folder in folders:
            self._store.drop_folder(folder)

    def finish(self) -> DelfIndex:
        """Build the index of everything taken in; returns the index, fitted.

        Raises ValueError where no photo was taken in, with the reasons; the folder is empty then.
        """
        self.commit()
        store = self._store
        folders = store.folders("chunk")
        if not folders and not self._parts():
            refused = store.catalog.select("not_indexed")
            store.discard()
            if not refused:
                raise ValueError("features must hold at least one photo; got none")
            reasons = "".join(f"\n  {path}: {reason}" for path, reason, *_ in refused[:3])
            raise ValueError(
                f"photos must hold at least one readable photo; none of {len(refused)} is:{reasons}"
            )
        chunks = [store.lazy_arrays(folder) for folder in folders]
        for chunk, folder in zip(chunks, folders):
            check_layout(chunk, folder)
        if store.catalog.value("dimension") is None:
            store.catalog.set_value("dimension", int(chunks[0]["descriptors"].shape[1]))
        n_rows = int(store.catalog.scalar("SELECT coalesce(sum(n_features), 0) FROM images"))
        engine = self._engine(n_rows)
        shared = self._learned(engine)
        groups = _in_parts(chunks, engine.part_rows)
        if shared is None and len(groups) < 2:
            store_segment(store, build_segment(chunks, engine), engine, learned=True)
        else:
            self._build_in_parts(chunks, folders, groups, engine, shared)
        for folder in folders:
            store.drop_folder(folder)
        self._index._store_parameters(store)
        store.finish()
        self._index._adopt(store)
        return self._index

    def _parts(self) -> list[str]:
        """Return the folders of what is encoded; earlier releases called them segments."""
        return [*self._store.folders("segment"), *self._store.folders("part")]

    def _build_in_parts(
        self,
        chunks: Sequence[Mapping[str, NDArray[Any]]],
        folders: Sequence[str],
        groups: Sequence[slice],
        engine: Engine,
        shared: Shared | None,
    ) -> None:
        """Encode some chunks at a time, each time dropping them, then merge; memory is bounded."""
        store = self._store
        if shared is None:
            shared = engine.learn(sample(chunks, sum(map(rows_in, chunks)), engine))
            arrays = engine.shared_arrays(shared)
            assert arrays is not None
            store.add_folder(SHARED, arrays)
            self._index._store_parameters(store)
        for group in groups:
            self._add_part(chunks[group], folders[group], engine, shared)
            store.commit()
        shared = self._learned(engine)
        parts = [
            Segment.from_arrays(store.arrays(folder), folder, engine, shared)
            for folder in self._parts()
        ]
        merge_stored(store, parts, engine, shared)
        for part in parts:
            store.drop_folder(part.folder)

    def close(self) -> None:
        """Let go of the folder; what was not committed is forgotten."""
        self._store.close()

    def _dimension(self, photos: list[LocalFeatures]) -> int:
        catalog = self._store.catalog
        known = catalog.value("dimension")
        filled = [photo for photo in photos if len(photo)]
        if known is None and not filled:
            return photos[0].dimension
        dimension = int(known) if known is not None else filled[0].dimension
        for photo in filled:
            if photo.dimension != dimension:
                raise ValueError(
                    f"descriptors must have {dimension} columns (as in the first photo); "
                    f"got {photo.dimension}"
                )
        if known is None:
            self._index._check_code(dimension)
            catalog.set_value("dimension", dimension)
        return dimension


class IndexUpdater(_Intake):
    """Takes photos into an existing index: new paths get new ids, changed photos keep theirs."""

    def __init__(self, index: DelfIndex) -> None:
        super().__init__(index._store)
        self._index = index
        self.ids: list[int] = []  # of the photos taken in so far, in their order

    def commit(self) -> None:
        """Take the waiting photos into the index, and save it where it lives in a folder."""
        photos, metadata = self._taken_photos()
        known = [self._index.find(path=str(entry["path"])) for entry in metadata]
        ids = [found[0].id if found else -1 for found in known]
        new = [i for i, image_id in enumerate(ids) if image_id < 0]
        old = [i for i, image_id in enumerate(ids) if image_id >= 0]
        if old:
            self._index.update(
                [ids[i] for i in old],
                [photos[i] for i in old],
                metadata=[_over(tables.metadata_of(known[i][0]), metadata[i]) for i in old],
            )
        if new:
            added = self._index.add([photos[i] for i in new], metadata=[metadata[i] for i in new])
            for i, image_id in zip(new, added.tolist()):
                ids[i] = image_id
        self._write_notes()
        if self._index.path is not None:
            self._index.save()
        self.ids += ids


def build_index(
    index: DelfIndex,
    path: Path,
    features: Iterable[LocalFeatures],
    metadata: Iterable[Mapping[str, Any] | None] | None,
    training: Iterable[LocalFeatures] | None,
) -> DelfIndex:
    """Build an index of photos that come one by one; see DelfIndex.build."""
    if training is not None and index.method != "ivf":
        raise ValueError(f'training is for method="ivf"; got "{index.method}"')
    builder = IndexBuilder(index, path)
    try:
        if training is not None:
            builder.learn(check_photos(training))
        skipped, number = builder.n_photos, -1
        for number, (photo, note) in enumerate(_with_notes(features, metadata)):
            if number < skipped:
                continue
            builder.add(check_features(photo, "features"), note or {})
            if builder.n_waiting >= _COMMIT_ROWS or builder.late:
                builder.commit()
        if number + 1 < skipped:
            raise ValueError(
                f"features must give all photos again, from the first one on, since {path} holds "
                f"{skipped} of an interrupted build; got {number + 1}"
            )
        return builder.finish()
    except BaseException:
        builder.close()
        raise


def _with_notes(
    features: Iterable[LocalFeatures], metadata: Iterable[Mapping[str, Any] | None] | None
) -> Iterator[tuple[LocalFeatures, Mapping[str, Any] | None]]:
    if metadata is None:
        yield from zip(features, repeat(None))
        return
    none = object()
    for number, (photo, note) in enumerate(zip_longest(features, metadata, fillvalue=none)):
        if photo is none or note is none:
            raise ValueError(
                f"metadata must have one entry per photo; {number} had both, then only one went on"
            )
        yield photo, note  # type: ignore[misc]


def check_place(path: Path) -> None:
    """Refuse a folder that no index can be built in, before any work is done for it.

    Raises FileExistsError or PermissionError, as IndexBuilder would.
    """
    if (path / FILE_NAME).exists():
        _open_building(path).close()
    else:
        check_target(path)


def _open_building(path: Path | None) -> IndexStore:
    if path is None:
        return IndexStore.in_memory()
    if not (path / FILE_NAME).exists():
        return IndexStore.create(path)
    store = IndexStore.open(path)
    if store.state != BUILDING:
        n_photos = store.catalog.scalar("SELECT count(*) FROM images")
        store.close()
        raise FileExistsError(
            f"{path} already holds an index of {n_photos} photos; add to it, delete it, or give "
            "another folder"
        )
    return store


def _in_parts(chunks: Sequence[Mapping[str, NDArray[Any]]], part_rows: int | None) -> list[slice]:
    """Cut chunks into runs of at most so many rows, a chunk at least; None: into one."""
    parts, begin, n = [], 0, 0
    for end, chunk in enumerate(chunks):
        if part_rows is not None and end > begin and n + rows_in(chunk) > part_rows:
            parts.append(slice(begin, end))
            begin, n = end, 0
        n += rows_in(chunk)
    if begin < len(chunks):
        parts.append(slice(begin, len(chunks)))
    return parts


def _over(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the old entries, replaced where the new ones say something."""
    return {**old, **{key: value for key, value in new.items() if value is not None}}

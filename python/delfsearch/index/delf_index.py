"""DelfIndex: the local features of a photo collection, searchable, changeable, and kept on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import (
    check_integer,
    check_matrix,
)
from delfsearch.errors import IndexFormatError
from delfsearch.features import LocalFeatures
from delfsearch.index.aggregation import View, batches
from delfsearch.index.checks import as_ids, check_ids, check_photos, dimension_of
from delfsearch.index.code_model import check_split
from delfsearch.index.engines import (
    MAX_LEAVES,
)
from delfsearch.index.segment import pack
from delfsearch.index.segment_set import TRAINED, SegmentSet
from delfsearch.index.selection import Selection, photos_of
from delfsearch.index.settings import IndexSettings
from delfsearch.matches import Matches
from delfsearch.storage import tables
from delfsearch.storage.store import BUILDING, IndexStore
from delfsearch.where import Where

logger = logging.getLogger("delfsearch")


class DelfIndex(IndexSettings):
    """An index of local features: neighbours of each query feature, grouped by database photo.

    method : "kdtree", 8-bit codes under a KD-tree; "ivf", posting lists of product codes, in a
        fraction of the memory; "auto": fit takes the second from 20 million descriptors on, where
        the code's parts divide the dimension. What was chosen stays, however the index grows; add
        warns where it outgrows trees.
    k, max_leaves, max_candidates : defaults of `query`. max_leaves None means 128 of the tree,
        10,000 of each list.
    max_squared_distance : neighbours beyond it are no putative matches, >= 0; None keeps all k. In
        a small collection the k nearest of any feature are spread over every photo. Of lists it is
        the distance to what a code stands for, larger on average, unless rerank or postings of
        photos bring in the 8-bit descriptors.
    leaf_size : descriptors of a leaf; None means 64 of the tree, 2,048 of lists that name
        features, 4,096 of those that name photos.
    clip_quantile : of the 8 bits, see QuantizedKDTree.
    postings : what the lists name. "photos" takes half the bits of "features": about 1.4 bytes in
        place of 2.6 a descriptor at a billion. The features that were found are then looked for
        among the 8-bit descriptors of the photos that are shortlisted (docs/inverted_file.md).
        "auto": fit takes photos from 200 million descriptors on, where rerank is 0.
    n_lists, n_probe, code, rerank, random_state : of the lists, see InvertedFile in
        delfsearch.index.inverted_file; leaf_size is a multiple of 64 there. rerank counts in
        each segment, and what exclude_ids leaves out counts as well.
    eps : leaves of the lists that are left out, see there; None means 0.2 of lists that name
        photos, for which there are many, 0 of those that name features. Trees have none.
    vote : how photos are shortlisted. "count": a photo's votes are the query features that have a
        neighbour in it; "distance": each counts 1 - d / d_k, with d the squared distance of its
        nearest neighbour in the photo and d_k that of its farthest neighbour of all.
    merge_factor : after `add`, the new segment is merged with every segment up to merge_factor
        times its size, smallest first; so few segments remain. 0 never merges.
    n_jobs : threads of the search, None means 1, -1 all cores. The answers do not depend on it.
    Learned: dimension_ (columns of the descriptors); method_, "kdtree" or "ivf"; postings_,
    "features" or "photos". What "auto" chose is also logged.

    Image ids are int64, never used twice, also after `remove`. An index made by `fit` lives in
    RAM until `save`; one that was saved or loaded is memory-mapped, and its changes wait for the
    next `save`, which writes only what is new. Queries may run in several threads at once, but not
    beside a change.
    Source: Sec. 5.2. Differs: max_leaves counts leaves of leaf_size descriptors, in each segment.
    """

    def __init__(
        self,
        *,
        method: str = "auto",
        k: int = 16,
        max_leaves: int | None = None,
        leaf_size: int | None = None,
        clip_quantile: float = 0.9999,
        max_candidates: int = 200,
        max_squared_distance: float | None = None,
        vote: str = "count",
        merge_factor: float = 4.0,
        n_lists: int = 8000,
        n_probe: int = 5,
        code: str = "10x5",
        eps: float | None = None,
        rerank: int = 0,
        postings: str = "auto",
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.method = method
        self.k = k
        self.max_leaves = max_leaves
        self.leaf_size = leaf_size
        self.clip_quantile = clip_quantile
        self.max_candidates = max_candidates
        self.max_squared_distance = max_squared_distance
        self.vote = vote
        self.merge_factor = merge_factor
        self.n_lists = n_lists
        self.n_probe = n_probe
        self.code = code
        self.eps = eps
        self.rerank = rerank
        self.postings = postings
        self.random_state = random_state
        self.n_jobs = n_jobs

    # -- building and changing ----------------------------------------------------------------

    def fit(
        self,
        features: Iterable[LocalFeatures],
        ids: Sequence[int] | NDArray[np.int64] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> DelfIndex:
        """Index the features of some photos, replacing what was indexed before.

        features : LocalFeatures of one dimension; a photo without features is indexed and never
            matches. uint8 descriptors are taken as the numbers 0 to 255.
        ids : distinct int64, at least 0; None means 0, 1, 2, ...
        metadata : one mapping (or None) a photo; path, content_hash, label, latitude and longitude
            have their columns, anything else must be what JSON can hold.
        Returns self. Raises ValueError where there is no photo, dimensions differ or ids repeat.
        """
        self._check_parameters()
        photos = check_photos(features)
        if not photos:
            raise ValueError("features must hold at least one photo; got none")
        image_ids = check_ids(ids, len(photos), "ids") if ids is not None else range(len(photos))
        records = tables.make_records(image_ids, photos, metadata)
        dimension = dimension_of(photos)
        self._check_code(dimension)
        chunk = pack(image_ids, photos, dimension)
        store = IndexStore.in_memory()
        store.catalog.set_value("dimension", dimension)
        segments = SegmentSet(store, self._choose(sum(map(len, photos)), store))
        segments.append(chunk, records)
        self._store, self._segments = store, segments
        self._settle(store)
        return self

    def build(
        self,
        path: str | os.PathLike[str],
        features: Iterable[LocalFeatures],
        *,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        training: Iterable[LocalFeatures] | None = None,
    ) -> DelfIndex:
        """Index photos that come one by one, in a folder, in bounded memory with method "ivf".

        path : a folder that is absent or empty, or that of a build that was interrupted: the same
            call with the same photos goes on after those that are in, a minute's at most being
            lost. It takes them from the first one on: skip the work on those that are in yourself.
        features : of photos, ids 0, 1, 2, ... metadata : for each photo, see fit.
        training : photos that what codes mean is learned from, with method "ivf"; they need not be
            among those indexed. They are held in memory; 1,280 descriptors a list are learned from
            where there are as many. Photos are then encoded as they come, and postings="auto" means
            features. None: all wait on disk in float32 (160 bytes a descriptor of 40 dimensions),
            and it is learned from a sample of all.
        Returns self, living in the folder. Raises FileExistsError where the folder holds something
        else, ValueError where there is no photo or an interrupted build had other parameters.
        """
        from delfsearch.index.builder import build_index

        return build_index(self, Path(path), features, metadata, training)

    def add(
        self,
        features: Iterable[LocalFeatures],
        *,
        ids: Sequence[int] | NDArray[np.int64] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> NDArray[np.int64]:
        """Add photos with the quantizer that fit learned; returns their ids (n,) int64.

        features, metadata : as in fit. ids : None numbers on; given ones must be above every id
        that was ever used, because ids are never used twice.
        """
        self._check_ready()
        photos = check_photos(features)
        next_id = self._next_id()
        if ids is None:
            if next_id + len(photos) > np.iinfo(np.int64).max:
                raise ValueError(f"ids must fit int64; the next one would be {next_id}")
            image_ids = np.arange(next_id, next_id + len(photos), dtype=np.int64)
        else:
            image_ids = check_ids(ids, len(photos), "ids")
            if len(image_ids) and image_ids.min() < next_id:
                raise ValueError(
                    f"ids must be at least {next_id}, since ids are never used twice; got "
                    f"{image_ids.min()}. Use update to replace the features of a photo"
                )
        records = tables.make_records(image_ids, photos, metadata)
        if photos:
            self._check_dimension(photos)
            before = self._segments.n_live_rows
            self._segments.append(pack(image_ids, photos, self.dimension_), records)
            self._warn_of_growth(before, self._segments.n_live_rows, self.dimension_)
            self._segments.merge_small(self.merge_factor)
        return image_ids

    def update(
        self,
        ids: Sequence[int] | NDArray[np.int64],
        features: Iterable[LocalFeatures],
        *,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Replace the features of photos, which keep their ids; metadata None keeps that as well.

        Raises KeyError where an id is not in the index.
        """
        self._check_ready()
        photos = check_photos(features)
        image_ids = check_ids(ids, len(photos), "ids")
        old = [self.image(int(image_id)) for image_id in image_ids]
        if metadata is None:
            metadata = [tables.metadata_of(record) for record in old]
        records = tables.make_records(image_ids, photos, metadata)
        if photos:
            self._check_dimension(photos)
            chunk = pack(image_ids, photos, self.dimension_)
            before = self._segments.n_live_rows
            self._segments.append(chunk, records, replaced=image_ids)
            self._warn_of_growth(before, self._segments.n_live_rows, self.dimension_)
            self._segments.merge_small(self.merge_factor)

    def remove(self, ids: Iterable[int] | NDArray[np.int64]) -> None:
        """Remove photos; their ids are never used again. KeyError where one is not in the index."""
        self._check_ready()
        image_ids = np.unique(as_ids(ids, "ids"))
        for image_id in image_ids:
            self.image(int(image_id))
        self._segments.forget(image_ids)
        for image_id in image_ids:
            self._store.catalog.delete("not_indexed", "image_id = ?", (int(image_id),))
        self._segments.merge_small(self.merge_factor)

    def merge(self) -> DelfIndex:
        """Rebuild all segments as one, without the photos that were removed; returns self."""
        self._check_ready()
        segments = self._segments.view.segments
        if len(segments) > 1 or any(segment.removed.any() for segment in segments):
            self._segments.merge(segments)
        return self

    # -- searching ----------------------------------------------------------------------------

    def query(
        self,
        features: LocalFeatures,
        *,
        k: int | None = None,
        max_leaves: int | None = None,
        max_candidates: int | None = None,
        exclude_ids: Iterable[int] | None = None,
        where: Where | Mapping[str, Any] | None = None,
    ) -> Matches:
        """Find the putative matches of one query photo, grouped by database photo.

        features : of the dimension in fit.
        k : neighbours of each query feature. max_leaves : leaves visited for each (T in the paper).
        max_candidates : photos kept, those with most votes; ties go to the lower id.
        exclude_ids : photos that must not answer (a query that is itself indexed). Their features
            take no place among the k: as many more are fetched as they took.
        where : only photos that satisfy it may answer, see Where; a mapping stands for
            Where(**mapping). Features of others take no place among the k, and leaves that hold
            nothing else none among max_leaves. Where none satisfies it, nothing matches.
        None means the constructor's value. Every pair of a query feature and a neighbour is kept,
        also several in one photo; verification makes them one to one.
        Raises ValueError where the index is empty, the dimension differs or a value is not finite.
        Source: Sec. 5.2.
        """
        return self.query_many(
            [features],
            k=k,
            max_leaves=max_leaves,
            max_candidates=max_candidates,
            exclude_ids=None if exclude_ids is None else [exclude_ids],
            where=where,
        )[0]

    def query_many(
        self,
        features: Sequence[LocalFeatures],
        *,
        k: int | None = None,
        max_leaves: int | None = None,
        max_candidates: int | None = None,
        exclude_ids: Sequence[Iterable[int] | None] | None = None,
        where: Where | Mapping[str, Any] | None = None,
    ) -> list[Matches]:
        """Answer several query photos, some at a time; each answer is that of `query`.

        exclude_ids : for each query photo the ids that must not answer, or None. where : for all of
            them; evaluated once, and kept for the next queries until the index changes.
        """
        self._check_ready()
        view = self._segments.view
        k = check_integer(self.k if k is None else k, "k", minimum=1)
        leaves = self.max_leaves if max_leaves is None else max_leaves
        if leaves is None:
            leaves = MAX_LEAVES[self._method()]
        leaves = check_integer(leaves, "max_leaves", minimum=1)
        candidates = self.max_candidates if max_candidates is None else max_candidates
        candidates = check_integer(candidates, "max_candidates", minimum=1)
        if len(self) == 0:
            raise ValueError("the index holds no photo; add some before querying it")
        photos = check_photos(features)
        descriptors = [self._check_descriptors(f) for f in photos]
        if exclude_ids is None:
            exclude_ids = [None] * len(photos)
        if len(exclude_ids) != len(photos):
            raise ValueError(
                f"exclude_ids must have one entry per query photo ({len(photos)}); "
                f"got {len(exclude_ids)}"
            )
        excluded = [
            np.unique(as_ids([] if ids is None else ids, "exclude_ids")) for ids in exclude_ids
        ]
        selection = self._select(view, Where.of(where))
        answers: list[Matches] = []
        for start, stop in batches([len(f) for f in photos]):
            counts = [len(f) for f in photos[start:stop]]
            starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
            if starts[-1] == 0:
                answers += [Matches.empty()] * (stop - start)
                continue
            squared, rows = view.neighbors(
                np.concatenate(descriptors[start:stop]),
                k,
                leaves,
                starts,
                excluded[start:stop],
                selection,
            )
            if self.max_squared_distance is not None:
                too_far = squared > self.max_squared_distance
                squared[too_far], rows[too_far] = np.inf, -1
            for i, photo in enumerate(photos[start:stop]):
                mine = slice(starts[i], starts[i + 1])
                answers.append(
                    view.group(
                        photo,
                        squared[mine],
                        rows[mine],
                        candidates,
                        self.vote == "distance",
                        self.max_squared_distance,
                    )
                )
        return answers

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_store")

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "_store"):
            raise TypeError("a fitted DelfIndex is not pickled: save it and load it instead")
        state: dict[str, Any] = super().__getstate__()
        return state

    # -- on disk ------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str] | None = None) -> DelfIndex:
        """Write the index to a folder, or commit its changes to the folder it lives in.

        path : a folder that is absent or empty: everything is written there, at once or not at
            all, and the index lives there from now on. None, or where it lives already: only what
            is new is written, then made visible in one transaction; a crash at any moment leaves
            the last state that was saved.
        Raises PermissionError where it cannot be written, FileExistsError where something is there.
        """
        self._check_ready()
        target = None if path is None else Path(path)
        if target is None and self._store.path is None:
            raise ValueError("path must be given: this index lives in RAM and has no folder yet")
        self._store_parameters(self._store)
        if target is None or (
            self._store.path is not None and _same_folder(target, self._store.path)
        ):
            self._store.commit()
        else:
            self._store.copy_to(target)
        self._segments.load()  # by memory map, where it was in RAM
        return self

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        n_jobs: int | None = None,
        verify: bool = False,
    ) -> DelfIndex:
        """Open an index by memory map; a read-only folder will do.

        n_jobs : as in the constructor. verify : also compare every byte with its checksum.
        Raises IndexFormatError where the folder is no index, is damaged, is still under
        construction, or is of a newer format version.
        """
        store = IndexStore.open(Path(path))
        try:
            if store.state == BUILDING:
                n_photos = store.catalog.scalar("SELECT count(*) FROM images")
                raise IndexFormatError(
                    f"{path} is an index under construction ({n_photos} photos so far); resume it "
                    "by running the same fit (or the same command) again"
                )
            if verify and (found := store.problems()):
                raise IndexFormatError(f"{path} is damaged: " + "; ".join(found))
            index = cls(**store.catalog.value("index"), n_jobs=n_jobs)
            index._check_parameters()
            index._adopt(store)
        except IndexFormatError:
            store.close()
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Whatever else cannot be made sense of was not written by save.
            store.close()
            raise IndexFormatError(f"{path} is damaged: {error}") from error
        return index

    # -- inside -------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        """Check parameters, which set_params may have changed, and hand them on."""
        self._check_parameters()
        self._check_fitted()
        self._segments.configure(self._engine())

    def _check_descriptors(self, features: LocalFeatures) -> NDArray[np.float32]:
        if len(features) == 0:
            return np.zeros((0, self.dimension_), np.float32)
        return check_matrix(features.descriptors, "descriptors", n_columns=self.dimension_)

    def _check_dimension(self, photos: Sequence[LocalFeatures]) -> None:
        filled = [photo for photo in photos if len(photo)]
        trained = self._store.catalog.value(TRAINED, False)
        if filled and not self._segments.has_rows and not trained:
            dimension = dimension_of(filled)
            if self.method_ == "ivf":
                check_split(self.code, dimension)
            self._store.catalog.set_value("dimension", dimension)
        for photo in filled:
            self._check_descriptors(photo)

    def _select(self, view: View, where: Where | None) -> Selection | None:
        """Return the photos that may answer, None for all."""
        if where is None:
            return None
        catalog = self._store.catalog
        return view.selections.get(
            catalog.revision, where.key, lambda: view.select(photos_of(where, catalog))
        )

    def _next_id(self) -> int:
        return int(self._store.catalog.value("next_id", 0))

    def _adopt(self, store: IndexStore) -> None:
        """Show what a store holds."""
        self._settle(store)
        segments = SegmentSet(store, self._engine())
        segments.load()
        self._store, self._segments = store, segments


def _same_folder(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)

"""The two ways to answer a query of a set: local features and their verification, or one vector.

Both are made from a Runnable whose photos are on its shelf, and offer the same: ``answers`` as a
run keeps them, ``hits`` with everything that a picture needs, and what the index takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.baselines.global_index import GlobalIndex
from delfsearch.errors import IndexFormatError, PhotoError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.running.feature_store import StoredPhoto, file_version, key_of
from delfsearch.evaluation.running.runnable import Effort, Progress, Runnable, SearchSettings
from delfsearch.features import LocalFeatures
from delfsearch.index.builder import IndexBuilder
from delfsearch.index.delf_index import DelfIndex
from delfsearch.matches import Hit
from delfsearch.verification.verifier import Verifier

# Part of every key of answers: to be raised when the search answers otherwise than before.
_VERSION = 1


class Search(ABC):
    """What asks the queries of a set; see the module.

    key : what the answers depend on beside query and effort, as JSON holds it. n_photos : in the
    index. n_bytes : of the index.
    """

    key: Mapping[str, Any]
    n_photos: int
    n_bytes: float

    @abstractmethod
    def read(self, query: Query) -> Any:
        """Return what the system extracted from a query; None where it cannot be read."""

    @abstractmethod
    def ask(
        self, queries: Sequence[Query], read: Sequence[Any], effort: Effort | None
    ) -> list[list[Hit]]:
        """Return what answers each query, best first.

        read : what read returned for each. A hit's path is its database id. Queries that cannot be
        read have no hits.
        """

    def hits(self, queries: Sequence[Query], effort: Effort | None) -> list[list[Hit]]:
        """Read the queries and ask them."""
        return self.ask(queries, [self.read(query) for query in queries], effort)


def open_search(
    runnable: Runnable,
    dataset: Dataset,
    folder: Path,
    *,
    settings: SearchSettings,
    progress: Progress | None = None,
) -> Search:
    """Return the search of a runnable on a set, its index built if it is not there yet.

    Raises ValueError where no photo of the database can be read; KeyError where one was not
    extracted.
    """
    make: type[_LocalSearch] | type[_GlobalSearch] = (
        _LocalSearch if runnable.kind == "local" else _GlobalSearch
    )
    return make(runnable, dataset, folder, settings, progress)


class _LocalSearch(Search):
    """DelfIndex and Verifier. Source: Sec. 5.2."""

    def __init__(
        self,
        runnable: Runnable,
        dataset: Dataset,
        folder: Path,
        settings: SearchSettings,
        progress: Progress | None,
    ) -> None:
        what = {
            "features": [runnable.shelf.key, dict(runnable.view_key)],
            "database": _fingerprint(dataset),
        }
        self._runnable = runnable
        self._max_candidates = settings.max_candidates
        self._index = _local_index(runnable, dataset, folder, what, settings, progress)
        self._names = {image.id: str(image.path) for image in self._index.images()}
        self._number = {name: identity for identity, name in self._names.items()}
        self._verifier = Verifier(
            min_inliers=settings.min_inliers,
            random_state=settings.random_state,
            n_jobs=settings.n_jobs,
        )
        self.key = {
            **what,
            **settings.key(),
            "version": _VERSION,
            # Defaults that no setting names may change too.
            "index": _without_threads(self._index),
            "verifier": _without_threads(self._verifier),
        }
        self.n_photos = len(self._names)
        self.n_bytes = float(self._index.memory_usage()["total"])

    def read(self, query: Query) -> LocalFeatures | None:
        """See Search."""
        features = self._runnable.shelf.load(StoredPhoto(Path(query.path), query.box))
        return None if isinstance(features, PhotoError) else self._runnable.view(_local(features))

    def ask(
        self, queries: Sequence[Query], read: Sequence[Any], effort: Effort | None
    ) -> list[list[Hit]]:
        """See Search."""
        if effort is None:
            raise ValueError("a local system must be asked with an effort (K, T); got none")
        asked = [i for i, features in enumerate(read) if features is not None]
        matches = self._index.query_many(
            [read[i] for i in asked],
            k=effort.k,
            max_leaves=effort.max_leaves,
            max_candidates=self._max_candidates,
            exclude_ids=[_own(queries[i], self._number) for i in asked],
        )
        found: list[list[Hit]] = [[] for _ in queries]
        for i, hits in zip(asked, self._verifier.verify_many(matches)):
            found[i] = [replace(hit, path=self._names[hit.id]) for hit in hits]
        return found


def _local_index(
    runnable: Runnable,
    dataset: Dataset,
    folder: Path,
    what: Mapping[str, Any],
    settings: SearchSettings,
    progress: Progress | None,
) -> DelfIndex:
    """Return the index of the database, built on disk in bounded memory if it is not there yet."""
    built: dict[str, Any] = {"method": "kdtree", "leaf_size": settings.leaf_size}
    named: dict[str, Any] = {"leaf_size": settings.leaf_size}
    if settings.lists is not None:
        built = {"method": "ivf", **settings.lists}
        named = {"lists": dict(settings.lists)}
    place = folder / "indexes" / key_of({**what, **named})
    options: dict[str, Any] = {"max_squared_distance": settings.max_squared_distance}
    try:
        return DelfIndex.load(place, n_jobs=settings.n_jobs).set_params(**options)  # type: ignore[no-any-return]
    except IndexFormatError:
        pass  # not there, or still being built
    place.parent.mkdir(parents=True, exist_ok=True)
    index = DelfIndex(n_jobs=settings.n_jobs, **built, **options)
    builder = IndexBuilder(index, place)
    try:
        known = builder.known_names
        for n, photo in enumerate(dataset.database, start=1):
            if photo not in known:
                features = runnable.shelf.load(StoredPhoto(Path(dataset.paths[photo])))
                if isinstance(features, PhotoError):
                    builder.note_refused(photo, str(features), None)
                else:
                    seen = runnable.view(_local(features))
                    builder.add(seen, {"path": photo, "content_hash": None})
                if builder.due:
                    builder.commit()
            if progress is not None:
                progress("photos indexed", n, len(dataset.database))
        return builder.finish()
    except BaseException:
        builder.close()
        raise


def _without_threads(estimator: Any) -> dict[str, Any]:
    return {k: v for k, v in estimator.get_params().items() if k not in ("n_jobs", "verbose")}


def _local(features: Any) -> LocalFeatures:
    if not isinstance(features, LocalFeatures):
        raise TypeError(f"a local system must give LocalFeatures; got {type(features).__name__}")
    return features


class _GlobalSearch(Search):
    """GlobalIndex: exact search by inner product."""

    def __init__(
        self,
        runnable: Runnable,
        dataset: Dataset,
        folder: Path,
        settings: SearchSettings,
        progress: Progress | None,
    ) -> None:
        self.key = {
            "features": [runnable.shelf.key, dict(runnable.view_key)],
            "database": _fingerprint(dataset),
            "version": _VERSION,
            "query_expansion": runnable.query_expansion,
            "max_answers": settings.max_answers,
        }
        self._runnable = runnable
        self._names: list[str] = []
        vectors: list[Any] = []
        for photo in dataset.database:
            vector = runnable.shelf.load(StoredPhoto(Path(dataset.paths[photo])))
            if not isinstance(vector, PhotoError):
                self._names.append(photo)
                vectors.append(runnable.view(vector))
        if not self._names:
            raise ValueError(f"{dataset.name}: no photo of the database can be read")
        self._index = GlobalIndex(n_jobs=settings.n_jobs).fit(np.stack(vectors))
        self._number = {name: row for row, name in enumerate(self._names)}
        self._max_answers = min(settings.max_answers, len(self._names))
        self.n_photos = len(self._names)
        self.n_bytes = float(self._index.vectors_.nbytes)

    def read(self, query: Query) -> NDArray[np.float32] | None:
        """See Search."""
        vector = self._runnable.shelf.load(StoredPhoto(Path(query.path), query.box))
        if isinstance(vector, PhotoError):
            return None
        return np.asarray(self._runnable.view(vector), np.float32)

    def ask(
        self, queries: Sequence[Query], read: Sequence[Any], effort: Effort | None
    ) -> list[list[Hit]]:
        """See Search."""
        asked = [i for i, vector in enumerate(read) if vector is not None]
        found: list[list[Hit]] = [[] for _ in queries]
        if not asked:
            return found
        scores, rows = self._index.query(
            np.stack([read[i] for i in asked]),
            k=self._max_answers,
            exclude_ids=[_own(queries[i], self._number) for i in asked],
            query_expansion=self._runnable.query_expansion,
        )
        for i, values, ids in zip(asked, scores, rows):
            found[i] = [self._hit(int(row), float(value)) for value, row in zip(values, ids)]
            found[i] = [hit for hit in found[i] if hit.id >= 0]
        return found

    def _hit(self, row: int, score: float) -> Hit:
        """A vector says that two photos agree, not where."""
        path = self._names[row] if row >= 0 else None
        return Hit(row, score, 0, _IDENTITY, _NO_INLIERS, path)


_IDENTITY = np.eye(2, 3)
_NO_INLIERS = np.zeros((0, 4), np.float32)


def _own(query: Query, number: Mapping[str, int]) -> list[int]:
    """Return the number of a query's own photo where it must not answer."""
    return [number[query.photo]] if query.photo in query.junk and query.photo in number else []


def _fingerprint(dataset: Dataset) -> str:
    """Name a database by its photos: ids, files, sizes and times of change."""
    paths = ((photo, Path(dataset.paths[photo])) for photo in dataset.database)
    return key_of([[photo, str(path), file_version(path)] for photo, path in paths])

"""One system on one Dataset: extract, index, ask every query, keep every answer.

What a run makes lies in a folder and is not made twice: features in a FeatureStore, the index of
local features on disk, and the answers, one line of JSON for each query. An interrupted run goes on
where it stopped and ends with the same answers.

- Local systems: DelfIndex (8-bit KD-tree), Verifier; a photo's score is its number of inliers.
  Several efforts (K neighbours, T leaves) are asked of one index. Global systems: GlobalIndex.
- A query with a box is cropped first, then extracted.
- A query's own photo does not answer where the Dataset has it as junk; then it takes no place among
  the neighbours either. Where it counts (Oxford5k and Paris6k as published) it answers like others.
- Photos that cannot be read are in no index; queries that cannot be read have no answers.

Source: Sec. 5.2. Differs: at most max_candidates photos are verified for a query, see
SearchSettings; a keypoint counts once (see Verifier).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from delfsearch.baselines.global_index import GlobalIndex
from delfsearch.errors import IndexFormatError, PhotoError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.feature_store import FeatureShelf, StoredPhoto, key_of
from delfsearch.evaluation.geo import judge_all_by_location
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.judging import judge_all
from delfsearch.features import LocalFeatures
from delfsearch.index.builder import IndexBuilder
from delfsearch.index.delf_index import DelfIndex
from delfsearch.verification.verifier import Verifier

Answers = dict[str, list[tuple[str, float]]]
Progress = Callable[[str, int, int], None]
# Answers of a batch of queries, and the seconds that they took together.
_Found = tuple[list[list[tuple[str, float]]], float]

_QUERY_BATCH = 16


@dataclass(frozen=True, order=True)
class Effort:
    """How hard the index of local features is searched: K neighbours, T leaves."""

    k: int
    max_leaves: int

    def __str__(self) -> str:
        return f"K={self.k}, T={self.max_leaves}"


@dataclass(frozen=True)
class SearchSettings:
    """What the search does beside the effort.

    leaf_size : descriptors in a leaf of the tree; the paper states none, 1 is FLANN's.
    max_candidates : photos verified for each query, those with most votes.
    max_squared_distance : neighbours beyond it are no putative matches; None keeps all K, as the
        paper says nothing of a limit.
    min_inliers : photos with fewer are no answers at all; precision and recall need low scores.
    max_answers : answers kept of a global system, best first; mean average precision counts
        positives ranked below as not found.
    random_state : seeds RANSAC. n_jobs : threads, which change no answer.
    """

    leaf_size: int = 1
    max_candidates: int = 500
    max_squared_distance: float | None = None
    min_inliers: int = 3
    max_answers: int = 1000
    random_state: int = 0
    n_jobs: int | None = -1

    def key(self) -> dict[str, Any]:
        """Return what the answers depend on."""
        return {name: value for name, value in asdict(self).items() if name != "n_jobs"}


@dataclass(frozen=True)
class Runnable:
    """A system that is ready to run.

    kind : "local" or "global". ran : what actually runs. shelf : where its features are.
    view : what becomes of stored features before they are used (the best ones, reduced; a vector
    whitened).
    view_key : says in JSON what view does. query_expansion : rounds, of global systems.
    """

    kind: Literal["local", "global"]
    ran: str
    shelf: FeatureShelf
    view: Callable[[Any], Any] = lambda features: features
    view_key: Mapping[str, Any] = field(default_factory=dict)
    query_expansion: int = 0


@dataclass(frozen=True)
class SystemRun:
    """What a system answered on a Dataset.

    answers : for each effort (one None for global systems), by query id, (database id, score) best
        first; read from disk at each access.
    n_database, n_unreadable : photos in the index, and left out as they cannot be read.
    unreadable_queries : ids. seconds_per_photo : of extraction. bytes_per_photo : of the index.
    seconds_per_query : of search and verification, by effort, mean over queries, by the wall clock
    and with n_jobs threads; extraction is not in it.
    """

    answers: Mapping[Effort | None, Answers]
    n_database: int
    n_unreadable: int
    unreadable_queries: tuple[str, ...]
    seconds_per_photo: float
    bytes_per_photo: float
    seconds_per_query: Mapping[Effort | None, float]


def run_system(
    runnable: Runnable,
    dataset: Dataset,
    efforts: Sequence[Effort],
    folder: Path,
    *,
    settings: SearchSettings | None = None,
    progress: Progress | None = None,
) -> SystemRun:
    """Run a system on a Dataset, or on what an earlier run left of it.

    efforts : at least one for local systems; not looked at for global ones.
    folder : where index and answers are kept, shared by all systems and sets. Answers are kept
        by database: sets that differ in their queries only share them.
    progress : called as progress(what, done, total).
    Raises ValueError where no photo of the database can be read.
    """
    settings = SearchSettings() if settings is None else settings
    database = [StoredPhoto(Path(dataset.paths[photo])) for photo in dataset.database]
    queries = [StoredPhoto(Path(query.path), query.box) for query in dataset.all_queries]
    photos = database + queries
    runnable.shelf.ensure(
        photos,
        None if progress is None else lambda done: progress("photos", done, len(photos)),
    )
    unreadable = tuple(
        query.id
        for query, photo in zip(dataset.all_queries, queries)
        if isinstance(runnable.shelf.load(photo), PhotoError)
    )
    run = _run_local if runnable.kind == "local" else _run_global
    answers, n_indexed, n_bytes = run(runnable, dataset, efforts, folder, settings, progress)
    seconds = {effort: answers.seconds(effort) for effort in answers}
    return SystemRun(
        answers=answers,
        n_database=n_indexed,
        n_unreadable=len(database) - n_indexed,
        unreadable_queries=unreadable,
        seconds_per_photo=runnable.shelf.seconds_per_photo(database),
        bytes_per_photo=n_bytes / n_indexed if n_indexed else math.nan,
        seconds_per_query=seconds,
    )


def judge_answers(
    dataset: Dataset, answers: Mapping[str, list[tuple[str, float]]], *, n_distractor_queries: int
) -> JudgedQueries:
    """Compare answers with the ground truth, the first n_distractor_queries being asked as well.

    By location where the Dataset has a radius: then a distractor query's answers are all wrong,
    wherever they are. Own photos are treated as the Dataset's junk says.
    """
    distractors = dataset.distractor_queries[:n_distractor_queries]
    if dataset.radius_km is None:
        return judge_all(answers, (*dataset.queries, *distractors))
    located = judge_all_by_location(
        answers, dataset.queries, dataset.locations, radius_km=dataset.radius_km
    )
    return JudgedQueries.of([*located, *judge_all(answers, distractors)])


# -- local ------------------------------------------------------------------------------------


def _run_local(
    runnable: Runnable,
    dataset: Dataset,
    efforts: Sequence[Effort],
    folder: Path,
    settings: SearchSettings,
    progress: Progress | None,
) -> tuple[_KeptAnswers, int, float]:
    if not efforts:
        raise ValueError("efforts must hold at least one; got none")
    what = {
        "features": [runnable.shelf.key, dict(runnable.view_key)],
        "database": _fingerprint(dataset),
    }
    logs: dict[Effort | None, _AnswerLog] = {
        effort: _AnswerLog(
            folder
            / "answers"
            / key_of({**what, **settings.key()})
            / f"k{effort.k}-t{effort.max_leaves}.jsonl"
        )
        for effort in efforts
    }
    index = _local_index(runnable, dataset, folder, what, settings, progress)
    images = {image.id: str(image.path) for image in index.images()}
    number = {name: identity for identity, name in images.items()}
    verifier = Verifier(
        min_inliers=settings.min_inliers,
        random_state=settings.random_state,
        n_jobs=settings.n_jobs,
    )

    def ask(batch: Sequence[Query], effort: Effort | None) -> _Found:
        if effort is None:
            raise ValueError("a local system must be asked with an effort (K, T); got none")
        loaded = [_query_features(runnable, query) for query in batch]
        asked = [i for i, features in enumerate(loaded) if features is not None]
        started = time.perf_counter()
        matches = index.query_many(
            [features for features in loaded if features is not None],
            k=effort.k,
            max_leaves=effort.max_leaves,
            max_candidates=settings.max_candidates,
            exclude_ids=[_own(batch[i], number) for i in asked],
        )
        found: list[list[tuple[str, float]]] = [[] for _ in batch]
        verified = verifier.verify_many(matches)
        seconds = time.perf_counter() - started
        for i, hits in zip(asked, verified):
            found[i] = [(images[hit.id], float(hit.score)) for hit in hits]
        return found, seconds

    answers = _ask_all(dataset, logs, ask, progress)
    n_bytes = float(index.memory_usage()["total"])
    return answers, len(images), n_bytes


def _local_index(
    runnable: Runnable,
    dataset: Dataset,
    folder: Path,
    what: Mapping[str, Any],
    settings: SearchSettings,
    progress: Progress | None,
) -> DelfIndex:
    """Return the index of the database, built on disk in bounded memory if it is not there yet."""
    place = folder / "indexes" / key_of({**what, "leaf_size": settings.leaf_size})
    options: dict[str, Any] = {"max_squared_distance": settings.max_squared_distance}
    try:
        return DelfIndex.load(place, n_jobs=settings.n_jobs).set_params(**options)  # type: ignore[no-any-return]
    except IndexFormatError:
        pass  # not there, or still being built
    place.parent.mkdir(parents=True, exist_ok=True)
    index = DelfIndex(leaf_size=settings.leaf_size, n_jobs=settings.n_jobs, **options)
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


def _query_features(runnable: Runnable, query: Query) -> LocalFeatures | None:
    features = runnable.shelf.load(StoredPhoto(Path(query.path), query.box))
    return None if isinstance(features, PhotoError) else runnable.view(_local(features))


def _local(features: Any) -> LocalFeatures:
    if not isinstance(features, LocalFeatures):
        raise TypeError(f"a local system must give LocalFeatures; got {type(features).__name__}")
    return features


# -- global -----------------------------------------------------------------------------------


def _run_global(
    runnable: Runnable,
    dataset: Dataset,
    efforts: Sequence[Effort],
    folder: Path,
    settings: SearchSettings,
    progress: Progress | None,
) -> tuple[_KeptAnswers, int, float]:
    what = {
        "features": [runnable.shelf.key, dict(runnable.view_key)],
        "database": _fingerprint(dataset),
        "query_expansion": runnable.query_expansion,
        "max_answers": settings.max_answers,
    }
    names: list[str] = []
    vectors: list[Any] = []
    for photo in dataset.database:
        vector = runnable.shelf.load(StoredPhoto(Path(dataset.paths[photo])))
        if not isinstance(vector, PhotoError):
            names.append(photo)
            vectors.append(runnable.view(vector))
    if not names:
        raise ValueError(f"{dataset.name}: no photo of the database can be read")
    index = GlobalIndex(n_jobs=settings.n_jobs).fit(np.stack(vectors))
    number = {name: row for row, name in enumerate(names)}

    def ask(batch: Sequence[Query], _: Effort | None) -> _Found:
        loaded = [runnable.shelf.load(StoredPhoto(Path(q.path), q.box)) for q in batch]
        asked = [i for i, vector in enumerate(loaded) if not isinstance(vector, PhotoError)]
        found: list[list[tuple[str, float]]] = [[] for _ in batch]
        if not asked:
            return found, 0.0
        started = time.perf_counter()
        scores, rows = index.query(
            np.stack([np.asarray(runnable.view(loaded[i])) for i in asked]),
            k=min(settings.max_answers, len(names)),
            exclude_ids=[_own(batch[i], number) for i in asked],
            query_expansion=runnable.query_expansion,
        )
        seconds = time.perf_counter() - started
        for i, values, ids in zip(asked, scores, rows):
            found[i] = [(names[row], float(value)) for value, row in zip(values, ids) if row >= 0]
        return found, seconds

    log = _AnswerLog(folder / "answers" / key_of(what) / "exact.jsonl")
    answers = _ask_all(dataset, {None: log}, ask, progress)
    return answers, len(names), float(index.vectors_.nbytes)


# -- both -------------------------------------------------------------------------------------


class _AnswerLog:
    """Answers on disk, a line for each query; a line that an interruption tore is forgotten.

    A line is the query's name, its answers, and the seconds that they took (absent from lines of
    before there was a third field). Only the names of the queries are held in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        whole = 0
        for line in self._lines():
            if not line.endswith(b"\n"):
                os.truncate(path, whole)
                break
            self.done.add(json.loads(line)[0])
            whole += len(line)

    def add(self, found: Mapping[str, list[tuple[str, float]]], seconds: float) -> None:
        """Append answers; seconds : that each query took."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            for query, answers in found.items():
                line = json.dumps([query, answers, seconds], allow_nan=False)
                file.write(line + "\n")
        self.done.update(found)

    def read(self, ids: Mapping[str, str]) -> Answers:
        """Return the answers of the queries with these names, by their ids."""
        answers: Answers = {}
        for line in self._lines():
            query, found = json.loads(line)[:2]
            if query in ids:
                answers[ids[query]] = [(name, float(score)) for name, score in found]
        return answers

    def seconds(self, ids: Mapping[str, str]) -> float:
        """Return the mean seconds of these queries; nan where they are not known."""
        lines = (json.loads(line) for line in self._lines())
        taken = [line[2] for line in lines if line[0] in ids and len(line) > 2]
        return float(np.mean(taken)) if taken else math.nan

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return


class _KeptAnswers(Mapping["Effort | None", Answers]):
    """Answers by effort, read from disk when asked for: all of a grid may not fit in memory."""

    def __init__(self, logs: Mapping[Effort | None, _AnswerLog], ids: Mapping[str, str]) -> None:
        self._logs = logs
        self._ids = ids

    def __getitem__(self, effort: Effort | None) -> Answers:
        return self._logs[effort].read(self._ids)

    def seconds(self, effort: Effort | None) -> float:
        """Return the mean seconds that a query took."""
        return self._logs[effort].seconds(self._ids)

    def __iter__(self) -> Iterator[Effort | None]:
        return iter(self._logs)

    def __len__(self) -> int:
        return len(self._logs)


def _ask_all(
    dataset: Dataset,
    logs: Mapping[Effort | None, _AnswerLog],
    ask: Callable[[Sequence[Query], Effort | None], _Found],
    progress: Progress | None,
) -> _KeptAnswers:
    keys = {query.id: _query_key(query) for query in dataset.all_queries}
    total = len(keys) * len(logs)
    done = 0
    for effort, log in logs.items():
        missing = [query for query in dataset.all_queries if keys[query.id] not in log.done]
        done += len(keys) - len(missing)
        for batch in _batches(missing):
            answers, seconds = ask(batch, effort)
            found = {keys[query.id]: one for query, one in zip(batch, answers)}
            log.add(found, seconds / len(batch))
            done += len(batch)
            if progress is not None:
                progress("answers", done, total)
    return _KeptAnswers(logs, {key: query for query, key in keys.items()})


def _batches(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    for start in range(0, len(queries), _QUERY_BATCH):
        yield queries[start : start + _QUERY_BATCH]


def _own(query: Query, number: Mapping[str, int]) -> list[int]:
    """Return the number of a query's own photo where it must not answer."""
    return [number[query.photo]] if query.photo in query.junk and query.photo in number else []


def _query_key(query: Query) -> str:
    """Name a query in a log by what its answers depend on, its photo file included."""
    box = None if query.box is None else [float(side) for side in query.box]
    return json.dumps([query.id, box, query.photo in query.junk, *file_version(Path(query.path))])


def _fingerprint(dataset: Dataset) -> str:
    """Name a database by its photos: ids, files, sizes and times of change."""
    paths = ((photo, Path(dataset.paths[photo])) for photo in dataset.database)
    return key_of([[photo, str(path), *file_version(path)] for photo, path in paths])


def file_version(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change in ns; (-1, -1) where it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns

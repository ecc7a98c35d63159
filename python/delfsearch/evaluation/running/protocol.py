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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from delfsearch.errors import PhotoError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.geo import judge_all_by_location
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.judging import judge_all
from delfsearch.evaluation.running.answer_log import AnswerLog, Answers, KeptAnswers
from delfsearch.evaluation.running.feature_store import StoredPhoto, file_version, key_of
from delfsearch.evaluation.running.runnable import Effort, Progress, Runnable, SearchSettings
from delfsearch.evaluation.running.searches import Search, open_search

_QUERY_BATCH = 16


@dataclass(frozen=True)
class SystemRun:
    """What a system answered on a Dataset.

    answers : for each effort (one None for global systems), by query id, (database id, score) best
        first; read from disk at each access.
    n_database, n_unreadable : photos in the index, and left out as they cannot be read.
    unreadable_queries : ids. seconds_per_photo : of extraction. bytes_per_photo : of the index.
    """

    answers: Mapping[Effort | None, Answers]
    n_database: int
    n_unreadable: int
    unreadable_queries: tuple[str, ...]
    seconds_per_photo: float
    bytes_per_photo: float


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
    local = runnable.kind == "local"
    if local and not efforts:
        raise ValueError("efforts must hold at least one; got none")
    search = open_search(runnable, dataset, folder, settings=settings, progress=progress)
    place = folder / "answers" / key_of(search.key)
    logs: dict[Effort | None, AnswerLog] = (
        {effort: AnswerLog(place / f"k{effort.k}-t{effort.max_leaves}.jsonl") for effort in efforts}
        if local
        else {None: AnswerLog(place / "exact.jsonl")}
    )
    answers = _ask_all(dataset, logs, search, progress)
    return SystemRun(
        answers=answers,
        n_database=search.n_photos,
        n_unreadable=len(database) - search.n_photos,
        unreadable_queries=unreadable,
        seconds_per_photo=runnable.shelf.seconds_per_photo(database),
        bytes_per_photo=search.n_bytes / search.n_photos,
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


def _ask_all(
    dataset: Dataset,
    logs: Mapping[Effort | None, AnswerLog],
    search: Search,
    progress: Progress | None,
) -> KeptAnswers:
    keys = {query.id: _query_key(query) for query in dataset.all_queries}
    total = len(keys) * len(logs)
    done = 0
    for effort, log in logs.items():
        missing = [query for query in dataset.all_queries if keys[query.id] not in log.done]
        done += len(keys) - len(missing)
        for batch in _batches(missing):
            answered = search.hits(batch, effort)
            log.add(
                {
                    keys[query.id]: [(str(hit.path), float(hit.score)) for hit in hits]
                    for query, hits in zip(batch, answered)
                }
            )
            done += len(batch)
            if progress is not None:
                progress("answers", done, total)
    return KeptAnswers(logs, {key: query for query, key in keys.items()})


def _batches(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    for start in range(0, len(queries), _QUERY_BATCH):
        yield queries[start : start + _QUERY_BATCH]


def _query_key(query: Query) -> str:
    """Name a query in a log by what its answers depend on, its photo file included."""
    box = None if query.box is None else [float(side) for side in query.box]
    return json.dumps([query.id, box, query.photo in query.junk, file_version(Path(query.path))])

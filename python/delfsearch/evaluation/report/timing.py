"""How long extraction and search take: all systems on the same photos and queries, nothing cached.

The seconds that a photo took when its features were made depend on what else ran in those hours;
here all systems are timed within minutes of each other, in rounds, and the fastest round counts.
Kept in the report's folder, since a report that is made again extracts nothing.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.report.entrants import Entrant
from delfsearch.evaluation.running.feature_store import key_of
from delfsearch.evaluation.running.fitted import versions
from delfsearch.evaluation.running.searches import open_search

_N_ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds by the wall clock with the threads of the run.

    seconds_per_photo : of extraction, of photos that follow each other (one alone takes longer).
    seconds_per_query : of search and verification of one query at a time, its features at hand.
    """

    seconds_per_photo: float
    seconds_per_query: float


def time_all(
    entrants: Sequence[Entrant],
    dataset: Dataset,
    work: Path,
    *,
    n_timed: int,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> list[Timing]:
    """Time each entrant; those that share features share the seconds of a photo.

    n_timed : photos of the database, and queries, drawn once and the same for all.
    """
    photos = [
        Path(dataset.paths[dataset.database[i]]) for i in _drawn(len(dataset.database), n_timed)
    ]
    queries = [dataset.all_queries[i] for i in _drawn(len(dataset.all_queries), n_timed)]
    systems = [
        [e.contender.key, _shelf_keys(e), e.device, e.settings.n_jobs, e.settings.key()]
        for e in entrants
    ]
    machine = [platform.machine(), os.cpu_count()]
    key = key_of([machine, systems, versions(photos), [query.id for query in queries]])
    place = work / "timing" / f"{key}.json"
    try:
        stored = json.loads(place.read_text(encoding="ascii"))
        return [Timing(**stored[entrant.contender.key]) for entrant in entrants]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        timings = _time(entrants, photos, queries, work, progress)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}.partial")
    found = {entrant.contender.key: asdict(t) for entrant, t in zip(entrants, timings)}
    partial.write_text(json.dumps(found), encoding="ascii")
    os.replace(partial, place)
    return timings


def _shelf_keys(entrant: Entrant) -> list[str]:
    return list(dict.fromkeys(runnable.shelf.key for runnable, _ in entrant.parts))


def _drawn(n: int, n_drawn: int) -> list[int]:
    chosen: list[int] = np.sort(np.random.default_rng(0).permutation(n)[:n_drawn]).tolist()
    return chosen


def _time(
    entrants: Sequence[Entrant],
    photos: Sequence[Path],
    queries: Sequence[Query],
    work: Path,
    progress: Callable[[str, str, int, int], None] | None,
) -> list[Timing]:
    # One network stands for those of all parts, which differ in their numbers only.
    shelves = {entrant.parts[0][0].shelf.key: entrant.parts[0][0].shelf for entrant in entrants}
    total = _N_ROUNDS * len(shelves) + len(entrants)
    n_done = 0

    def done() -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress("all systems", "timed", n_done, total)

    best = dict.fromkeys(shelves, float("inf"))
    for shelf in shelves.values():  # the network is loaded, and the files are in memory
        _seconds(shelf.extract(photos[:2]))
    for _ in range(_N_ROUNDS):
        for key, shelf in shelves.items():
            best[key] = min(best[key], _seconds(shelf.extract(photos)) / len(photos))
            done()
    timings = []
    for entrant in entrants:
        seconds = best[entrant.parts[0][0].shelf.key]
        timings.append(Timing(seconds, _search_seconds(entrant, queries, work)))
        done()
    return timings


def _seconds(stream: Iterable[Any]) -> float:
    started = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - started


def _search_seconds(entrant: Entrant, queries: Sequence[Query], work: Path) -> float:
    """Return the mean seconds of a query in the fastest round, each asked of the part it is of."""
    searches = []
    for runnable, part in entrant.parts:
        ids = {query.id for query in part.all_queries}
        own = [query for query in queries if query.id in ids]
        if own:
            search = open_search(runnable, part, work, settings=entrant.settings)
            searches += [(search, query, search.read(query)) for query in own]
    rounds = []
    for _ in range(1 + _N_ROUNDS):  # the first one reads the index from disk
        started = time.perf_counter()
        for search, query, features in searches:
            search.ask([query], [features], entrant.effort)
        rounds.append((time.perf_counter() - started) / len(queries))
    return min(rounds)

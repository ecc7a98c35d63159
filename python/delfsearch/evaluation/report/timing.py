"""How long extraction takes: every system on the same photos, one after the other, nothing cached.

The seconds that a photo took when its features were made depend on what else ran in those hours;
here all systems are timed within minutes of each other, in rounds, and the fastest round counts.
Kept in the report's folder, since a report that is made again extracts nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.running.feature_store import FeatureShelf, key_of
from delfsearch.evaluation.running.fitted import versions
from delfsearch.evaluation.running.runnable import Runnable

_N_ROUNDS = 2


class Timed(Protocol):
    """What is needed of an Entrant."""

    @property
    def parts(self) -> Sequence[tuple[Runnable, Dataset]]:
        """Who answers which queries; all extract in the same way."""
        ...


def seconds_per_photo(
    entrants: Sequence[Timed],
    dataset: Dataset,
    work: Path,
    *,
    n_photos: int,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> list[float]:
    """Return the seconds a photo that each entrant extracts in, by the wall clock.

    n_photos : drawn from the database, the same ones for all; with all threads of the run, so that
        the time of one photo alone is longer. Those that share a shelf share the figure.
    """
    chosen = np.random.default_rng(0).permutation(len(dataset.database))[:n_photos]
    photos = [Path(dataset.paths[dataset.database[i]]) for i in np.sort(chosen)]
    shelves = {entrant.parts[0][0].shelf.key: entrant.parts[0][0].shelf for entrant in entrants}
    place = work / "timing" / f"{key_of([sorted(shelves), versions(photos)])}.json"
    try:
        seconds = json.loads(place.read_text(encoding="ascii"))
    except (OSError, ValueError):
        seconds = _time_all(shelves, photos, progress)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(seconds), encoding="ascii")
        os.replace(partial, place)
    return [float(seconds[entrant.parts[0][0].shelf.key]) for entrant in entrants]


def _time_all(
    shelves: dict[str, FeatureShelf],
    photos: Sequence[Path],
    progress: Callable[[str, str, int, int], None] | None,
) -> dict[str, float]:
    best = dict.fromkeys(shelves, float("inf"))
    n_done = 0
    for shelf in shelves.values():  # the network is loaded, and the files are in memory
        _time(shelf, photos[:2])
    for _ in range(_N_ROUNDS):
        for key, shelf in shelves.items():
            best[key] = min(best[key], _time(shelf, photos) / len(photos))
            n_done += 1
            if progress is not None:
                progress("all systems", "extraction timed", n_done, _N_ROUNDS * len(shelves))
    return best


def _time(shelf: FeatureShelf, photos: Sequence[Path]) -> float:
    started = time.perf_counter()
    for _ in shelf.extract(photos):
        pass
    return time.perf_counter() - started

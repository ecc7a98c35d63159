"""The sets that a table's columns name, made from the folders that are at hand."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query
from delfsearch.evaluation.datasets.distractors import with_distractor_queries, with_distractors
from delfsearch.evaluation.datasets.image_folder import read_image_folder
from delfsearch.evaluation.datasets.library_folder import read_library_folder
from delfsearch.evaluation.datasets.oxford import PARIS6K_UNREADABLE, read_oxford5k, read_paris6k
from delfsearch.evaluation.datasets.registry import load_dataset
from delfsearch.evaluation.paper.systems import FitPhotos
from delfsearch.evaluation.paper.tables import Column, Table

# What a set's database is, and where its distractor queries come from.
_STARRED = {
    "oxford5k*": ("oxford", "paris", False),
    "paris6k*": ("paris", "oxford", False),
    "oxford105k*": ("oxford", "paris", True),
    "paris106k*": ("paris", "oxford", True),
}
_FIT_PER_LABEL = 10
_READERS = {"oxford": read_oxford5k, "paris": read_paris6k}


@dataclass(frozen=True)
class Sources:
    """Folders of the sets, None where not at hand.

    oxford, paris, flickr100k : as ``docs/datasets.md`` lays them out. large : a table with GPS, or
    its folder. smoke : a folder in the library's own format, asked in place of every set. training
    : a folder for each label, to learn PCAs and whitenings from (the paper's LC).
    """

    oxford: Path | None = None
    paris: Path | None = None
    flickr100k: Path | None = None
    large: Path | None = None
    smoke: Path | None = None
    training: Path | None = None


@dataclass(frozen=True)
class Limits:
    """How much of a set is asked and searched, None for all.

    queries : queries, and distractor queries. photos : of the database; right answers come first.
    fit_photos : to learn from, at most.
    """

    queries: int | None = None
    photos: int | None = None
    fit_photos: int = 500


def columns_at_hand(table: Table, sources: Sources) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return the columns whose set can be made, and what is missing for the others.

    Raises DatasetError where there is none.
    """
    if sources.smoke is not None:
        # One set stands for all: columns that would ask the same are asked once.
        distinct: dict[tuple[str, int], Column] = {}
        for column in table.columns:
            distinct.setdefault((column.metric, column.n_distractor_queries), column)
        return tuple(distinct.values()), ()
    lacking: dict[str, str] = {}
    for name in table.datasets:
        missing = [part for part in _needed(name) if getattr(sources, part) is None]
        if missing:
            lacking[name] = f"{name} needs the folder of {', '.join(missing)}"
    columns = tuple(column for column in table.columns if column.dataset not in lacking)
    if not columns:
        raise DatasetError(f"{table.name}: {'; '.join(lacking.values())}")
    return columns, tuple(lacking.values())


def load_set(
    name: str, columns: Sequence[Column], sources: Sources, limits: Limits
) -> tuple[Dataset, FitPhotos]:
    """Return a column's set and the photos to learn from for it."""
    wanted = max(c.n_distractor_queries for c in columns if c.dataset == name)
    if sources.smoke is not None:
        dataset = read_library_folder(sources.smoke)
    elif name == "large":
        dataset = load_dataset("large", _existing(sources.large, name))
    else:
        dataset = _starred(name, wanted, sources, limits)
    asked = shortened(dataset, limits)
    return asked, _fit_photos(name, asked, dataset, sources, limits)


def shortened(dataset: Dataset, limits: Limits) -> Dataset:
    """Return a set with fewer queries and photos, to see that everything runs.

    Headline queries come first; right answers and own photos stay before other photos.
    """
    n = limits.queries
    chosen = set(dataset.headline)
    first = [query for query in dataset.queries if query.id in chosen]
    rest = [query for query in dataset.queries if query.id not in chosen]
    queries = tuple((first + rest)[:n])
    distractors = dataset.distractor_queries[:n]
    if limits.photos is None or limits.photos >= len(dataset.database):
        kept = set(dataset.database)
    else:
        wanted = {photo for query in queries for photo in (*query.positives, *query.junk)}
        wanted |= {query.photo for query in queries} & set(dataset.database)
        others = [photo for photo in dataset.database if photo not in wanted]
        kept = wanted | set(others[: max(0, limits.photos - len(wanted))])

    def cut(query: Query) -> Query:
        parts = {
            name: getattr(query, name) & kept for name in ("positives", "junk", "easy", "hard")
        }
        return dataclasses.replace(query, **parts)

    ids = {query.id for query in queries}
    return dataclasses.replace(
        dataset,
        database=tuple(photo for photo in dataset.database if photo in kept),
        queries=tuple(map(cut, queries)),
        distractor_queries=tuple(map(cut, distractors)),
        labels={photo: label for photo, label in dataset.labels.items() if photo in kept},
        locations={photo: place for photo, place in dataset.locations.items() if photo in kept},
        headline=tuple(name for name in dataset.headline if name in ids),
    ).check()


def _needed(name: str) -> tuple[str, ...]:
    if name == "large":
        return ("large",)
    first, second, larger = _STARRED[name]
    return (first, second, "flickr100k") if larger else (first, second)


def _starred(name: str, wanted: int, sources: Sources, limits: Limits) -> Dataset:
    first, second, larger = _STARRED[name]
    dataset = _READERS[first](_existing(getattr(sources, first), name))
    other = _READERS[second](_existing(getattr(sources, second), name))
    if limits.queries is not None:
        # A miniature may not have as many.
        wanted = min(wanted, len(set(other.database) - set(PARIS6K_UNREADABLE)))
    if larger:
        dataset = with_distractors(dataset, _existing(sources.flickr100k, name))
    return with_distractor_queries(dataset, other, wanted)


def _fit_photos(
    name: str, dataset: Dataset, whole: Dataset, sources: Sources, limits: Limits
) -> FitPhotos:
    """Return photos to learn from: training photos, another set's, or the database's own.

    whole : the set before it was shortened.
    """
    if sources.training is not None:
        given = read_image_folder(sources.training, queries="first")
        where, labels, source = given.paths, given.labels, "training photos"
        candidates = list(given.database)
    elif name in _STARRED and sources.smoke is None:
        second = _STARRED[name][1]
        other = _READERS[second](_existing(getattr(sources, second), name))
        asked = {query.path for query in dataset.distractor_queries}
        where, labels, source = other.paths, other.labels, f"photos of {other.name}"
        candidates = [p for p in other.database if Path(other.paths[p]) not in asked]
    else:
        right = {photo for query in dataset.queries for photo in query.positives}
        others = [photo for photo in dataset.database if photo not in right]
        shown = {whole.labels.get(photo) for photo in right}
        spare = [p for p, label in whole.labels.items() if label not in shown and p not in right]
        if dataset.radius_km is None and len({whole.labels[p] for p in spare}) > 1:
            # A shortened set leaves labelled photos of what is not asked for.
            source = "photos of what no query asks for"
            return _labelled(source, spare, whole.labels, whole.paths, limits)
        where, labels = dataset.paths, {}
        source = "photos of the database that answer no query"
        candidates = others
        if not others or dataset.radius_km is not None:
            candidates, source = list(dataset.database), "photos of the database itself"
    if any(photo in labels for photo in candidates):
        return _labelled(source, candidates, labels, where, limits)
    drawn = _drawn(candidates, limits.fit_photos)
    return FitPhotos(f"{len(drawn)} {source}", tuple(Path(where[photo]) for photo in drawn))


def _labelled(
    source: str,
    candidates: Sequence[str],
    labels: Mapping[str, str],
    where: Mapping[str, Path],
    limits: Limits,
) -> FitPhotos:
    """Return some photos of each thing, because a whitening learns from pairs of the same."""
    groups: dict[str, list[str]] = {}
    for photo in candidates:
        if photo in labels:
            groups.setdefault(labels[photo], []).append(photo)
    several = [_drawn(groups[label], _FIT_PER_LABEL) for label in _drawn(list(groups), len(groups))]
    drawn = [photo for group in several for photo in group][: limits.fit_photos]
    return FitPhotos(
        f"{len(drawn)} labelled {source}",
        tuple(Path(where[photo]) for photo in drawn),
        tuple(labels[photo] for photo in drawn),
    )


def _drawn(names: Sequence[str], n: int) -> list[str]:
    """Return n names in a random order that depends on no generator."""
    return heapq.nsmallest(
        n, names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest()
    )


def _existing(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise DatasetError(f"{name} needs a folder that was not given")
    return folder


def describe(sources: Sources) -> Mapping[str, str]:
    """Return the folders that were given, as text."""
    return {
        field.name: str(getattr(sources, field.name))
        for field in dataclasses.fields(sources)
        if getattr(sources, field.name) is not None
    }

"""What to do where the ground truth names photos that are not there: refuse, or leave them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from delfsearch._validation import check_choice
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.base import Dataset, Query, listed
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths, absent_files
from delfsearch.evaluation.datasets.sources import advice

CHOICES = ("error", "drop")


def settle_missing(
    dataset: Dataset, missing: str, *, source: str = "", look: bool = True
) -> Dataset:
    """Return a set that names no absent photo, and check it.

    missing : "error" refuses it; "drop" leaves absent photos out of the database and the ground
        truth, and leaves out queries whose photo is absent or that lose all their positives. notes
        says what went.
    source : key of SOURCES, for the error. look : whether to look for the files of the database
        (those of a folder that was just listed are there).
    Raises DatasetError with the first absent photos and how many they are.
    """
    check_choice(missing, "missing", CHOICES)
    known = set(dataset.database)
    unnamed = {photo for query in dataset.all_queries for photo in _named(query) - known}
    where = PhotoPaths.of(dataset.paths)
    gone = {photo for photo in dataset.database if photo not in where}
    if look:
        files = {where.text(photo): photo for photo in dataset.database if photo not in gone}
        gone |= {files[file] for file in absent_files(files)}
    files_of_queries = absent_files(str(query.path) for query in dataset.all_queries)
    lost = {query.id for query in dataset.all_queries if str(query.path) in files_of_queries}
    if not (unnamed or gone or lost):
        return dataset.check()
    photos_of_lost = {query.photo for query in dataset.all_queries if query.id in lost}
    absent = sorted(unnamed | gone | photos_of_lost)
    if missing == "error":
        raise DatasetError(
            f"{dataset.name}: {len(absent)} photo(s) that it names are not on disk under "
            f"{dataset.root}, or not in the database: {listed(absent)}{advice(source)}; or do "
            "without them: missing='drop'"
        )
    return _without(dataset, gone, lost, known - gone, absent).check()


def _named(query: Query) -> frozenset[str]:
    return query.positives | query.junk | query.easy | query.hard


def _without(
    dataset: Dataset, gone: set[str], lost: set[str], kept: set[str], absent: list[str]
) -> Dataset:
    def trimmed(queries: Iterable[Query]) -> list[Query]:
        return [
            query
            if _named(query) <= kept
            else dataclasses.replace(
                query,
                positives=query.positives & kept,
                junk=query.junk & kept,
                easy=query.easy & kept,
                hard=query.hard & kept,
            )
            for query in queries
            if query.id not in lost
        ]

    answered = trimmed(dataset.queries)
    emptied = (
        {query.id for query in answered if not query.positives}
        if dataset.radius_km is None
        else set()
    )
    dropped = sorted(lost | emptied)
    notes = [f"left out {len(absent)} absent photo(s): {listed(absent)}"]
    if dropped:
        notes.append(f"left out {len(dropped)} query(ies) for lack of photos: {listed(dropped)}")
    return dataclasses.replace(
        dataset,
        database=tuple(photo for photo in dataset.database if photo not in gone),
        queries=tuple(query for query in answered if query.id not in emptied),
        distractor_queries=tuple(trimmed(dataset.distractor_queries)),
        labels={p: label for p, label in dataset.labels.items() if p not in gone},
        locations={p: place for p, place in dataset.locations.items() if p not in gone},
        headline=tuple(name for name in dataset.headline if name not in lost | emptied),
        notes=dataset.notes + tuple(notes),
    )

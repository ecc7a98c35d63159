"""What an evaluation set is: a database of photos, queries with ground truth, distractor queries.

Every reader of this folder returns a Dataset that has passed ``check``:

- ids are unique within the database and within the queries. A query's id names the query, not its
  photo: Oxford's query all_souls_1 is a box in the photo all_souls_000013, which ``photo`` names.
- Every query has a right answer: positives, or a location where the set is judged by distance
  (``radius_km``). Queries that nothing in the database answers are distractor queries.
- positives and junk are photos of the database and share none.
- Own photos. Where ``exclude_self`` holds, a query whose photo is in the database has that photo
  in its junk, so that it counts neither for nor against. Where it does not hold (Oxford5k, Paris6k
  as published) the photo stays wherever the ground truth has it. A distractor query's own photo is
  always in its junk. Whoever judges by positives and junk needs no further rule.

Easy and hard are the two parts of the positives of the revisited sets, empty elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NoReturn

from delfsearch.boxes import Box, check_box
from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths, absent_files

Location = tuple[float, float]  # (latitude, longitude) in degrees

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Query:
    """One query with what is known of it.

    id : its name, unique among the queries of the set.
    path : its photo. photo : the id which that photo has, or would have, in the database; the same
        as id unless given.
    box : (x0, y0, x1, y1) in pixels of the upright photo: crop first, then extract. None is all.
    positives : right answers. junk : answers ignored at any rank. easy, hard : see the module.
    scene, subset, kind : what it shows, which part of the set it is of, how it was made; may be "".
    location : (latitude, longitude) in degrees, or None.
    """

    id: str
    path: Path
    box: Box | None = None
    positives: frozenset[str] = field(repr=False, default=_NOTHING)
    junk: frozenset[str] = field(repr=False, default=_NOTHING)
    easy: frozenset[str] = field(repr=False, default=_NOTHING)
    hard: frozenset[str] = field(repr=False, default=_NOTHING)
    scene: str = ""
    subset: str = ""
    kind: str = ""
    location: Location | None = None
    photo: str = ""

    def __post_init__(self) -> None:
        if not self.photo:
            object.__setattr__(self, "photo", self.id)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An evaluation set. Nothing here has opened a photo: some may prove unreadable later.

    name : as in ``load_dataset``. root : the folder it was read from.
    database : ids of the photos to index, in a fixed order.
    queries : those with a right answer. distractor_queries : those with none.
    paths : absolute path by database id.
    labels : what a database photo shows, where known. locations : (latitude, longitude) in
        degrees by database id, where known.
    headline : ids of the queries whose figures to quote first; empty means all.
    exclude_self : whether a query's own photo is left out of its answers (see the module).
    radius_km : an answer within this distance of the query's location is right; None where
        positives say what is right.
    notes : what the reader found worth saying, such as photos it left out.
    """

    name: str
    root: Path
    database: tuple[str, ...] = field(repr=False)
    queries: tuple[Query, ...] = field(repr=False)
    distractor_queries: tuple[Query, ...] = field(repr=False, default=())
    paths: Mapping[str, Path] = field(repr=False)
    labels: Mapping[str, str] = field(repr=False, default_factory=dict)
    locations: Mapping[str, Location] = field(repr=False, default_factory=dict)
    headline: tuple[str, ...] = field(repr=False, default=())
    exclude_self: bool = True
    radius_km: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def all_queries(self) -> tuple[Query, ...]:
        """The queries, then the distractor queries."""
        return self.queries + self.distractor_queries

    @property
    def own_photo_queries(self) -> tuple[str, ...]:
        """Ids of queries whose own photo is in the database and does not count as an answer."""
        known = set(self.database)
        return tuple(
            query.id
            for query in self.all_queries
            if query.photo in known and query.photo in query.junk
        )

    @property
    def headline_queries(self) -> tuple[Query, ...]:
        """The queries whose figures to quote first."""
        chosen = set(self.headline)
        return tuple(q for q in self.queries if q.id in chosen) if chosen else self.queries

    def absent_photos(self) -> tuple[str, ...]:
        """Return the photos of the database and the queries that are not on disk, by id."""
        where = PhotoPaths.of(self.paths)
        files = {where.text(photo): photo for photo in self.database if photo in where}
        files |= {str(query.path): query.id for query in self.all_queries}
        unknown = [photo for photo in self.database if photo not in where]
        return tuple(unknown + sorted(files[file] for file in absent_files(files)))

    def check(self) -> Dataset:
        """Return this set if it keeps the rules of the module; files are not looked at.

        Raises DatasetError that names the rule and the first ids that break it.
        """
        _check_database(self)
        _check_queries(self)
        known = set(self.database)
        for query in self.all_queries:
            _check_query(self, query, known)
        return self


def listed(names: Iterable[str], *, show: int = 5) -> str:
    """Return the first names of some and how many there are: 'a', 'b', ... (7 in all)."""
    names = list(names)
    shown = ", ".join(map(repr, names[:show]))
    return f"{shown}, ... ({len(names)} in all)" if len(names) > show else shown


def own_photo_ignored(
    photo: str, positives: frozenset[str], junk: frozenset[str], database: Collection[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Return positives and junk with a query's own photo, if it is in the database, as junk."""
    if photo not in database or (photo in junk and photo not in positives):
        return positives, junk
    return positives - {photo}, junk | {photo}


def _check_database(dataset: Dataset) -> None:
    known = set(dataset.database)
    if len(known) != len(dataset.database):
        _refuse_repeats(dataset, dataset.database, "the database must hold every id once")
    if not known:
        _fail(dataset, "the database must hold at least one photo; it is empty")
    where = PhotoPaths.of(dataset.paths)
    if pathless := [photo for photo in dataset.database if photo not in where]:
        _fail(dataset, f"paths must have every photo of the database; absent: {listed(pathless)}")
    for name, table in (("labels", dataset.labels), ("locations", dataset.locations)):
        if strangers := [photo for photo in table if photo not in known]:
            _fail(dataset, f"{name} must be of database photos; {listed(strangers)} are not")
    for photo, location in dataset.locations.items():
        check_location(location, f"{dataset.name}: photo {photo!r}")
    if dataset.radius_km is not None and not (0 < dataset.radius_km < float("inf")):
        _fail(dataset, f"radius_km must be positive and finite; got {dataset.radius_km}")


def _check_queries(dataset: Dataset) -> None:
    ids = [query.id for query in dataset.queries]
    distractor_ids = [query.id for query in dataset.distractor_queries]
    if both := sorted(set(ids) & set(distractor_ids)):
        _fail(dataset, f"a query must not also be a distractor query; {listed(both)} are both")
    _refuse_repeats(dataset, ids + distractor_ids, "queries must have different ids")
    if unknown := [name for name in dataset.headline if name not in set(ids)]:
        _fail(dataset, f"headline must name queries; {listed(unknown)} are none")
    if dataset.radius_km is None:
        if empty := [query.id for query in dataset.queries if not query.positives]:
            _fail(
                dataset,
                f"every query must have a positive; {listed(empty)} have none. Make those that "
                "nothing in the database answers distractor queries",
            )
    elif lost := [query.id for query in dataset.queries if query.location is None]:
        _fail(
            dataset,
            f"every query must have a location, as right is what lies within {dataset.radius_km} "
            f"km; {listed(lost)} have none",
        )
    if answered := [query.id for query in dataset.distractor_queries if query.positives]:
        _fail(dataset, f"distractor queries must have no positives; {listed(answered)} have some")


def _check_query(dataset: Dataset, query: Query, known: set[str]) -> None:
    for name in ("positives", "junk", "easy", "hard"):
        ids = getattr(query, name)
        if not ids <= known:
            _fail(
                dataset,
                f"{name} of query {query.id!r} must be photos of the database; not in it: "
                f"{listed(sorted(ids - known))}",
            )
    for one, other in (("positives", "junk"), ("easy", "hard")):
        if both := getattr(query, one) & getattr(query, other):
            _fail(
                dataset,
                f"query {query.id!r} must not have a photo both in {one} and {other}; "
                f"{listed(sorted(both))} are",
            )
    if query.box is not None:
        try:
            check_box(query.box)
        except ValueError as error:
            _fail(dataset, f"query {query.id!r}: {error}")
    if query.location is not None:
        check_location(query.location, f"{dataset.name}: query {query.id!r}")
    itself_counts = query.positives and not dataset.exclude_self
    if query.photo in known and query.photo not in query.junk and not itself_counts:
        _fail(
            dataset,
            f"the own photo {query.photo!r} of query {query.id!r} is in the database and must be "
            "in its junk (or exclude_self be false)",
        )


def check_location(location: Location, whose: str) -> None:
    """Refuse what is no (latitude, longitude) in degrees."""
    latitude, longitude = location
    if not (isfinite(latitude) and -90 <= latitude <= 90):
        raise DatasetError(f"{whose} must have a latitude in -90 ... 90 degrees; got {latitude}")
    if not (isfinite(longitude) and -180 <= longitude <= 180):
        raise DatasetError(
            f"{whose} must have a longitude in -180 ... 180 degrees; got {longitude}"
        )


def _refuse_repeats(dataset: Dataset, ids: Iterable[str], rule: str) -> None:
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        _fail(dataset, f"{rule}; more than once: {listed(repeated)}")


def _fail(dataset: Dataset, message: str) -> NoReturn:
    raise DatasetError(f"{dataset.name}: {message}")

"""Right by location: an answer is right where it was taken near enough to the query.

Locations are (latitude, longitude) in degrees. Distances are great-circle distances on a sphere of
the Earth's mean radius, from the vectors u, v of the two places: the angle is
2 atan2(|u - v|, |u + v|). That is exact to some nanometres for near and for antipodal places, and
knows neither poles nor an antimeridian. The Earth's flattening makes it differ from the distance on
the ellipsoid by up to 0.6%: 150 m in 25 km.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_real
from delfsearch.evaluation.judged import JudgedQueries
from delfsearch.evaluation.judging import Answers, own_photo
from delfsearch.evaluation.numbered import NumberedAnswers, NumberedTruth

EARTH_RADIUS_KM = 6371.0088  # mean radius (2a + b) / 3 of the WGS 84 ellipsoid
RIGHT_WITHIN_KM = 25.0  # the paper's rule for its large-scale set

# Places this far (6 mm) from the limit are decided one by one, so that counting positives and
# judging answers agree to the last bit.
_CHORD_MARGIN = 1e-9


class LocatedQuery(Protocol):
    """What judge_all_by_location needs to know of a query; the Query of a dataset is one."""

    @property
    def id(self) -> Hashable:
        """Name of the query, a key of answers."""

    @property
    def location(self) -> tuple[float, float] | None:
        """(latitude, longitude) in degrees."""

    @property
    def junk(self) -> Collection[Hashable]:
        """Ids ignored wherever they rank."""

    @property
    def scene(self) -> str:
        """Queries of one scene are resampled together."""


def great_circle_km(first: Any, second: Any) -> NDArray[np.float64]:
    """Great-circle distance between places, in kilometres.

    first, second : (..., 2) latitude in [-90, 90] and longitude in [-180, 360], degrees; shapes
        broadcast.
    Returns (...) float64 in [0, 20015.1].
    Raises ValueError for a latitude or longitude out of range or not finite.
    """
    u, v = _unit_vectors(first, "first"), _unit_vectors(second, "second")
    apart, together = _squared_norm(u - v), _squared_norm(u + v)
    return np.asarray(2 * EARTH_RADIUS_KM * np.arctan2(np.sqrt(apart), np.sqrt(together)))


def positives_within(
    query_locations: Any, database_locations: Any, radius_km: float = RIGHT_WITHIN_KM
) -> list[NDArray[np.int64]]:
    """Return for each query the numbers of the database photos within radius_km, rising.

    query_locations : (q, 2), database_locations : (n, 2), degrees, as in great_circle_km.
    radius_km : at least 0; a photo exactly at the radius is within it.
    Raises ValueError as great_circle_km does.
    """
    queries = _places(query_locations, "query_locations")
    database = _places(database_locations, "database_locations")
    limit = _chord(radius_km)
    if not len(queries) or not len(database):
        return [np.zeros(0, np.int64) for _ in queries]
    near = _tree(database).query_radius(queries, limit + _CHORD_MARGIN)
    return [
        np.sort(found[_within(query, database[found], limit)]).astype(np.int64)
        for query, found in zip(queries, near)
    ]


def count_within(
    query_locations: Any, database_locations: Any, radius_km: float = RIGHT_WITHIN_KM
) -> NDArray[np.int64]:
    """Return how many database photos lie within radius_km of each query, (q,) int64.

    Arguments and errors are those of positives_within; the photos are not listed, which saves time
    and memory where thousands lie together.
    """
    return _count_within(
        _places(query_locations, "query_locations"),
        _places(database_locations, "database_locations"),
        _chord(radius_km),
    )


def judge_by_location(
    ids: Any,
    scores: Any,
    *,
    query_locations: Any,
    database_locations: Any,
    radius_km: float = RIGHT_WITHIN_KM,
    junk: Sequence[Collection[int]] | None = None,
    own_ids: Any = None,
    query_ids: Sequence[Hashable] = (),
    scenes: Sequence[str] = (),
    ties: str = "wrong_first",
) -> JudgedQueries:
    """Judge numbered answers by the distance between where query and answer were taken.

    ids, scores, junk, own_ids, query_ids, scenes, ties : as in judge_arrays; ids are row numbers of
        database_locations.
    query_locations : (q, 2), database_locations : (n, 2), radius_km : as in positives_within.
    The ground truth of a query is every database photo within the radius but junk and its own; a
    query with none is a distractor query.
    Raises ValueError as judge_arrays and great_circle_km do, and for an id beyond the database.
    Source: the paper's large-scale evaluation (25 km).
    """
    table = NumberedAnswers.checked(ids, scores, own_ids, query_ids, scenes, ties)
    queries = _places(query_locations, "query_locations", len(table.ids))
    database = _places(database_locations, "database_locations")
    limit = _chord(radius_km)
    n_queries = len(table.ids)
    ignored = NumberedTruth.checked(
        [()] * n_queries if junk is None else junk, n_queries, "junk", table.own_ids
    )
    for name, values in (
        ("ids", table.ids),
        ("own_ids", table.own_ids),
        ("junk", ignored.values),
    ):
        if values.size and values.max() >= len(database):
            raise ValueError(
                f"{name} must be rows of database_locations, of which there are {len(database)}; "
                f"got {values.max()}"
            )

    def flags(rows: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        block = table.ids[rows]
        if not len(database):
            return np.zeros(block.shape, bool), np.zeros(block.shape, bool)
        near = _within(queries[rows, None], database[np.maximum(block, 0)], limit) & (block >= 0)
        return near, ignored.holds(block, rows)

    counts = _count_within(queries, database, limit)
    if len(ignored.values):
        rows = np.repeat(np.arange(n_queries), ignored.counts)
        near_junk = _within(queries[rows], database[ignored.values], limit)
        counts -= np.bincount(rows, weights=near_junk, minlength=n_queries).astype(np.int64)
    indexed = np.flatnonzero(table.own_ids >= 0)
    counts[indexed] -= _within(queries[indexed], database[table.own_ids[indexed]], limit)
    return table.judged(flags, counts)


def judge_all_by_location(
    answers: Mapping[Any, Answers],
    queries: Iterable[LocatedQuery],
    locations: Mapping[Any, tuple[float, float]],
    *,
    radius_km: float = RIGHT_WITHIN_KM,
    exclude_self: bool = True,
    ties: str = "wrong_first",
) -> JudgedQueries:
    """Judge a system's answers on a dataset by location.

    answers : (id, score) pairs by query id, as in judge_all.
    queries : objects with id, location, junk and scene.
    locations : (latitude, longitude) in degrees of every database photo, by id; a photo absent here
        is not in the database.
    radius_km, ties : as in judge_by_location. exclude_self : as in judge.
    Raises ValueError as judge_all and judge_by_location do, and for a query without a location or
    an answer without one.
    """
    items = list(queries)
    number = {identity: row for row, identity in enumerate(locations)}
    for query in items:
        if query.location is None:
            raise ValueError(
                f"query {query.id!r} must have a location to be judged by; it has none"
            )
        if query.id not in answers:
            raise ValueError(
                f"answers must have an entry for every query; {query.id!r} has none. Give an "
                "empty list where there is no answer"
            )
        unknown = [identity for identity, _ in answers[query.id] if identity not in number]
        if unknown:
            raise ValueError(
                f"locations must hold every answer; {unknown[0]!r}, an answer to {query.id!r}, has "
                "none"
            )
    names = [query.id for query in items]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"queries must hold every id once; got {twice!r} twice")
    width = max((len(answers[name]) for name in names), default=0)
    ids = np.full((len(items), width), -1, np.int64)
    scores = np.zeros((len(items), width))
    for row, name in enumerate(names):
        for column, (identity, score) in enumerate(answers[name]):
            ids[row, column], scores[row, column] = number[identity], score
    return judge_by_location(
        ids,
        scores,
        query_locations=[query.location for query in items],
        database_locations=list(locations.values()),
        radius_km=radius_km,
        junk=[[number[identity] for identity in q.junk if identity in number] for q in items],
        own_ids=[number.get(own_photo(q), -1) if exclude_self else -1 for q in items],
        query_ids=names,
        scenes=[query.scene for query in items],
        ties=ties,
    )


def _places(locations: Any, name: str, n: int | None = None) -> NDArray[np.float64]:
    array = np.asarray(locations)
    if array.size == 0:
        array = array.reshape(0, 2)
    if array.ndim != 2:
        raise ValueError(f"{name} must be a 2-D array (places, 2); got shape {array.shape}")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must have {n} rows, one per query; got {len(array)}")
    return _unit_vectors(array, name)


def _unit_vectors(locations: Any, name: str) -> NDArray[np.float64]:
    degrees = np.asarray(locations)
    if degrees.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numbers of degrees; got dtype {degrees.dtype}")
    degrees = degrees.astype(np.float64, copy=False)
    if degrees.ndim < 1 or degrees.shape[-1] != 2:
        raise ValueError(
            f"{name} must have (latitude, longitude) in its last axis; got shape {degrees.shape}"
        )
    latitude, longitude = degrees[..., 0], degrees[..., 1]
    bad = ~((np.abs(latitude) <= 90) & (longitude >= -180) & (longitude <= 360))
    if bad.any():
        raise ValueError(
            f"{name} must be latitudes in [-90, 90] and longitudes in [-180, 360], in this order; "
            f"got {tuple(degrees[bad][0].tolist())}"
        )
    phi, lam = np.radians(latitude), np.radians(longitude)
    level = np.cos(phi)
    return np.stack([level * np.cos(lam), level * np.sin(lam), np.sin(phi)], axis=-1)


def _squared_norm(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    # Written out: the same operations in the same order for one pair and for millions.
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.asarray(x * x + y * y + z * z)


def _within(u: NDArray[np.float64], v: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    return np.asarray(_squared_norm(u - v) <= limit * limit)


def _chord(radius_km: float) -> float:
    """Return the straight distance, on the unit sphere, of places radius_km apart."""
    check_real(radius_km, "radius_km", minimum=0)
    half_angle = radius_km / (2 * EARTH_RADIUS_KM)
    return float(2 * np.sin(half_angle)) if half_angle < np.pi / 2 else 2.0 + _CHORD_MARGIN


def _tree(vectors: NDArray[np.float64]) -> Any:
    from sklearn.neighbors import KDTree

    return KDTree(vectors)


def _count_within(
    queries: NDArray[np.float64], database: NDArray[np.float64], limit: float
) -> NDArray[np.int64]:
    counts = np.zeros(len(queries), np.int64)
    if not len(queries) or not len(database):
        return counts
    tree = _tree(database)
    # In bands of latitude, so that one query's part of the tree is still in cache for the next.
    order = np.lexsort((queries[:, 0], np.round(queries[:, 2], 2)))
    counts[order] = tree.query_radius(queries[order], limit + _CHORD_MARGIN, count_only=True)
    surely = np.zeros_like(counts)
    if limit > _CHORD_MARGIN:
        surely[order] = tree.query_radius(queries[order], limit - _CHORD_MARGIN, count_only=True)
    unsure = np.flatnonzero(counts != surely)
    if not len(unsure):
        return counts
    for row, found in zip(unsure, tree.query_radius(queries[unsure], limit + _CHORD_MARGIN)):
        counts[row] = _within(queries[row], database[found], limit).sum()
    return counts

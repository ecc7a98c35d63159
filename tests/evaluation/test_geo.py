"""Distances on the globe, and answers judged by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import Truth

from delfsearch.evaluation import metrics
from delfsearch.evaluation.geo import EARTH_RADIUS_KM
from delfsearch.evaluation.metrics import (
    count_within,
    great_circle_km,
    judge_all_by_location,
    judge_by_location,
    positives_within,
)

DEGREE = EARTH_RADIUS_KM * math.pi / 180  # 111.195 km
places = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


def slow_distance(one, other):
    """The haversine formula in extended precision."""
    lat1, lon1, lat2, lon2 = (np.deg2rad(np.longdouble(x)) for x in (*one, *other))
    h = np.sin((lat2 - lat1) / 2) ** 2
    h += np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return float(2 * EARTH_RADIUS_KM * np.arctan2(np.sqrt(h), np.sqrt(max(1 - h, 0))))


@pytest.mark.parametrize(
    ("one", "other", "km"),
    [
        ((0, 0), (0, 0), 0),
        ((0, 0), (1, 0), DEGREE),
        ((0, 0), (0, 1), DEGREE),
        ((60, 10), (60, 10), 0),
        ((0, 179.9), (0, -179.9), 0.2 * DEGREE),  # across the antimeridian
        ((0, 180), (0, -180), 0),
        ((0, 359), (0, -1), 0),  # either way of counting longitude
        ((89.9, 0), (89.9, 180), 0.2 * DEGREE),  # across the pole
        ((90, 0), (90, 77), 0),  # a pole has every longitude
        ((-90, 12), (90, -50), 180 * DEGREE),
        ((0, 0), (0, 180), 180 * DEGREE),  # antipodes
        ((30, 20), (-30, -160), 180 * DEGREE),
        ((0, 0), (0, 179.999), 179.999 * DEGREE),  # nearly antipodes
        ((0, 0), (90, 123), 90 * DEGREE),
        # cos(60 degrees) = 1/2: sin(d/2) = sin(0.5 degrees) / 2
        ((60, 0), (60, 1), 2 * EARTH_RADIUS_KM * math.asin(math.sin(math.radians(0.5)) / 2)),
        ((48.8584, 2.2945), (51.5007, -0.1246), 340.5),  # Eiffel Tower, Big Ben
    ],
)
def test_known_distances(one, other, km):
    tolerance = 0.5 if km == 340.5 else 1e-9
    assert float(great_circle_km(one, other)) == pytest.approx(km, abs=tolerance)
    assert float(great_circle_km(other, one)) == pytest.approx(km, abs=tolerance)


@settings(deadline=None)
@given(places, places)
def test_agrees_with_the_haversine_formula(one, other):
    expected = slow_distance(one, other)
    # The haversine formula itself loses digits near the antipodes.
    tolerance = 1e-6 if expected < 170 * DEGREE else 1e-3
    assert abs(float(great_circle_km(one, other)) - expected) < tolerance


@settings(deadline=None)
@given(places, places, st.floats(-180, 180))
def test_a_turned_globe_has_the_same_distances(one, other, turn):
    def turned(place):
        return place[0], (place[1] + turn + 540) % 360 - 180

    before = float(great_circle_km(one, other))
    assert float(great_circle_km(turned(one), turned(other))) == pytest.approx(before, abs=1e-7)


@settings(deadline=None)
@given(places, places, places)
def test_is_a_distance(a, b, c):
    ab, bc, ac = (float(great_circle_km(*pair)) for pair in ((a, b), (b, c), (a, c)))
    assert float(great_circle_km(a, a)) == 0
    assert ab == float(great_circle_km(b, a))
    assert ac <= ab + bc + 1e-9
    assert 0 <= ab <= 180 * DEGREE + 1e-9


def test_shapes_broadcast():
    grid = great_circle_km(np.zeros((3, 1, 2)), [[0, 0], [0, 1]])
    assert grid.shape == (3, 2) and grid[2].tolist() == pytest.approx([0, DEGREE])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((91, 0), r"latitudes in \[-90, 90\] .* in this order; got \(91\.0, 0\.0\)"),
        ((0, -181), "longitudes"),
        ((0, 361), "longitudes"),
        ((float("nan"), 0), "latitudes"),
        ((0, float("inf")), "longitudes"),
        ((1, 2, 3), r"\(latitude, longitude\) in its last axis; got shape \(3,\)"),
        (("1", "2"), "numbers of degrees"),
        (3.0, "last axis"),
    ],
)
def test_places_that_are_none(place, message):
    with pytest.raises(ValueError, match=f"second must .*{message}"):
        great_circle_km((0, 0), place)


def scattered(seed, n):
    """Places in tight groups, some over the antimeridian and the poles."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 180], [89.95, 40], [-89.99, 0], [48.9, 2.3], [-33.9, 151.2]])
    found = centres[rng.integers(0, len(centres), n)] + rng.normal(0, 0.2, (n, 2))
    found[:, 0] = np.clip(found[:, 0], -90, 90)
    found[:, 1] = (found[:, 1] + 180) % 360 - 180
    return found


@pytest.mark.parametrize("radius", [0.0, 1.0, 25.0, 500.0, 12_000.0, 30_000.0])
def test_neighbours_agree_with_all_distances(radius):
    queries, database = scattered(0, 40), scattered(1, 300)
    database[7] = queries[3]
    distances = great_circle_km(queries[:, None], database)
    assert np.abs(distances - radius).min() > 1e-6 or radius == 0.0
    expected = [np.flatnonzero(row <= radius).tolist() for row in distances]
    assert [found.tolist() for found in positives_within(queries, database, radius)] == expected
    assert count_within(queries, database, radius).tolist() == [len(row) for row in expected]


def test_the_edge_of_the_circle():
    """A millimetre inside is inside, a millimetre outside is not."""
    for latitude in (0.0, 55.0, 89.9):
        edge = latitude - 25 / DEGREE
        millimetre = 1e-6 / DEGREE
        database = [(edge + millimetre, 10), (edge - millimetre, 10), (latitude, 10)]
        assert positives_within([(latitude, 10)], database)[0].tolist() == [0, 2]
        assert count_within([(latitude, 10)], database).tolist() == [2]


def test_many_places_near_the_edge_are_counted_as_they_are_judged():
    """Within some millimetres of the radius, counting and judging take the same side."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, 500)
    radius = (25 + rng.uniform(-1e-6, 1e-6, 500) * rng.choice([0, 1e-6, 1], 500)) / DEGREE
    database = np.stack([radius * np.sin(angles), radius * np.cos(angles)], axis=1)
    ids = np.arange(500)[None]
    judged = judge_by_location(
        ids, np.zeros((1, 500)), query_locations=[(0, 0)], database_locations=database
    )
    assert 0 < judged.n_positives[0] < 500
    assert judged.correct.sum() == judged.n_positives[0]
    found = positives_within([(0, 0)], database)[0]
    assert len(found) == judged.n_positives[0]


def test_no_places():
    assert positives_within([], []) == [] and count_within([], [(0, 0)]).tolist() == []
    assert [found.tolist() for found in positives_within([(0, 0)], [])] == [[]]
    assert count_within([(0, 0)], np.zeros((0, 2))).tolist() == [0]
    with pytest.raises(ValueError, match="radius_km must be at least 0"):
        count_within([(0, 0)], [(0, 0)], -1)
    with pytest.raises(ValueError, match=r"query_locations must be a 2-D array"):
        count_within((0, 0), [(0, 0)])


def test_judging_by_hand():
    # 25 km are 0.2248 degrees of latitude. Query over the antimeridian, another at the pole.
    database = [(0, 179.9), (0, -179.95), (0, 179.7), (89.95, 100), (0, 180)]
    queries = [(0, -180), (89.9, -80), (45, 45)]
    judged = judge_by_location(
        [[2, 0, 1, 4], [3, 0, -1, -1], [0, -1, -1, -1]],
        [[9, 8, 7, 6], [5, 4, 0, 0], [3, 0, 0, 0]],
        query_locations=queries,
        database_locations=database,
        own_ids=[4, -1, -1],
    )
    # 0.3 degrees away is wrong; the query's own photo (4) is left out, of the positives too.
    assert [query.correct.tolist() for query in judged] == [
        [False, True, True],
        [True, False],
        [False],
    ]
    assert judged.n_positives.tolist() == [2, 1, 0]  # the third is a distractor query
    assert judged.self_excluded_ids == (0,)
    assert (
        metrics.true_positives_at_precision(judged, 0.6) == 3
    )  # 9 5 wrong right, 8 7 right: 3 of 4


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_judging_by_positives(seed):
    rng = np.random.default_rng(seed)
    queries, database = scattered(seed, 30), scattered(seed + 100, 200)
    ids = np.stack([rng.permutation(200)[:20] for _ in range(30)])
    ids[rng.random(ids.shape) < 0.2] = -1
    scores = rng.integers(0, 9, ids.shape)
    own = np.where(rng.random(30) < 0.5, rng.integers(0, 200, 30), -1)
    junk = [set(rng.integers(0, 200, 5).tolist()) for _ in range(30)]
    near = positives_within(queries, database)
    positives = [set(found.tolist()) - ignored for found, ignored in zip(near, junk)]
    expected = metrics.judge_arrays(ids, scores, positives, junk, own_ids=own)
    options = dict(query_locations=queries, database_locations=database)
    judged = judge_by_location(ids, scores, junk=junk, own_ids=own, **options)
    for name in ("scores", "correct", "offsets", "n_positives", "self_excluded"):
        assert getattr(judged, name).tolist() == getattr(expected, name).tolist()
    # The same by id.
    names = [f"photo{i}" for i in range(200)]
    truths = [
        Truth(
            f"query{i}" if own[i] < 0 else names[own[i]],
            location=tuple(queries[i]),
            junk=frozenset(names[j] for j in junk[i]),
            scene="s",
        )
        for i in range(30)
    ]
    one_each = {truth.id: i for i, truth in enumerate(truths)}
    truths = [truths[i] for i in one_each.values()]
    answers = {
        name: [(names[photo], s) for photo, s in zip(ids[i], scores[i]) if photo >= 0]
        for name, i in one_each.items()
    }
    locations = dict(zip(names, map(tuple, database)))
    by_id = judge_all_by_location(answers, truths, locations)
    rows = expected.take(list(one_each.values()))
    assert by_id.correct.tolist() == rows.correct.tolist()
    assert by_id.n_positives.tolist() == rows.n_positives.tolist()
    assert by_id.self_excluded.tolist() == rows.self_excluded.tolist()
    assert by_id.ids == tuple(one_each) and set(by_id.scenes) == {"s"}


def test_what_cannot_be_judged_by_location():
    here = Truth("q", location=(0.0, 0.0))
    locations = {"a": (0.0, 0.1)}
    judged = judge_all_by_location({"q": [("a", 1)]}, [here], locations)
    assert judged.n_positives.tolist() == [1] and judged.correct.tolist() == [True]
    assert len(judge_all_by_location({}, [], locations)) == 0
    assert judge_all_by_location({"q": []}, [here], {}).n_positives.tolist() == [0]
    with pytest.raises(ValueError, match="query 'q' must have a location"):
        judge_all_by_location({"q": []}, [Truth("q")], locations)
    with pytest.raises(ValueError, match=r"'q' has none\. Give an empty list"):
        judge_all_by_location({}, [here], locations)
    with pytest.raises(ValueError, match="'b', an answer to 'q', has none"):
        judge_all_by_location({"q": [("b", 1)]}, [here], locations)
    with pytest.raises(ValueError, match="got 'q' twice"):
        judge_all_by_location({"q": []}, [here, here], locations)
    with pytest.raises(ValueError, match="every id once; got 0 twice or more in query 'q'"):
        judge_all_by_location({"q": [("a", 1), ("a", 2)]}, [here], locations)
    with pytest.raises(ValueError, match="ids must be rows of database_locations"):
        judge_by_location([[1]], [[1]], query_locations=[(0, 0)], database_locations=[(0, 0)])
    with pytest.raises(ValueError, match="query_locations must have 1 rows"):
        judge_by_location([[0]], [[1]], query_locations=[], database_locations=[(0, 0)])

"""Malformed and degenerate matches: a clear error or no hit, never anything else."""

from __future__ import annotations

import numpy as np
import pytest
from planted import affine, candidate, pack

from delfsearch import Matches, Verifier


def good():
    rng = np.random.default_rng(0)
    return pack([candidate(rng, 40, 40, affine()), candidate(rng, 30, 0)])


def changed(**arrays):
    return Matches(**{**vars(good()), **arrays})


def with_value(array, value):
    array = array.copy()
    array.flat[5] = value
    return array


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query_xy", "database_xy", "squared_distances"])
def test_values_must_be_finite(name, value):
    with pytest.raises(ValueError, match=name):
        Verifier().verify(changed(**{name: with_value(getattr(good(), name), value)}))


@pytest.mark.parametrize(
    "name", ["query_xy", "database_xy", "squared_distances", "query_indices", "database_indices"]
)
def test_lengths_must_agree(name):
    with pytest.raises(ValueError, match=r"rows|elements|offsets"):
        Verifier().verify(changed(**{name: getattr(good(), name)[:-1]}))


@pytest.mark.parametrize(
    "offsets", [[0, 40], [0, 40, 71], [1, 40, 70], [0, 90, 70], [0, -1, 70], [0, 40, 70, 70], []]
)
def test_offsets_must_fit(offsets):
    with pytest.raises(ValueError, match="offsets"):
        Verifier().verify(changed(offsets=np.array(offsets, np.int64)))


def test_offsets_must_be_integers():
    with pytest.raises(ValueError, match="offsets"):
        Verifier().verify(changed(offsets=np.array([0, 40.5, 70])))


def test_coordinates_must_be_pairs():
    with pytest.raises(ValueError, match="query_xy"):
        Verifier().verify(changed(query_xy=np.zeros((70, 3))))


def test_anything_else_is_a_type_error():
    with pytest.raises(TypeError, match="Matches"):
        Verifier().verify("matches")
    with pytest.raises(TypeError, match="Matches"):
        Verifier().verify_many([good(), None])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_error", 0),
        ("max_error", np.nan),
        ("max_error", "20"),
        ("min_inliers", 2),
        ("min_inliers", 8.5),
        ("min_separation", -1),
        ("max_iterations", 0),
        ("confidence", 0),
        ("confidence", 1),
        ("min_support", 2),
        ("min_scale", 0),
        ("max_scale", 0.01),
        ("max_stretch", 0.9),
        ("max_rotation", -1),
        ("random_state", -1),
        ("n_jobs", 0),
    ],
)
def test_parameters_are_checked(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        Verifier(**{name: value}).verify(good())


def test_dtypes_and_layouts_give_the_same_answer():
    matches = good()
    expected = Verifier().verify_all(matches)
    wide = np.zeros((140, 4))
    wide[::2, :2] = matches.query_xy
    found = Verifier().verify_all(
        changed(
            query_xy=wide[::2, :2],
            database_xy=np.asfortranarray(matches.database_xy.astype(np.float64)),
            offsets=matches.offsets.astype(np.uint16),
            query_indices=matches.query_indices.astype(np.int64),
        )
    )
    np.testing.assert_array_equal(found.inlier_rows, expected.inlier_rows)
    np.testing.assert_array_equal(found.affines, expected.affines)


def one(query, database):
    return Verifier(min_inliers=3).verify_all(pack([(np.array(query), np.array(database))]))


def test_nothing_to_verify():
    assert Verifier().verify(Matches.empty()) == []
    assert len(Verifier().verify_all(Matches.empty())) == 0


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_matches_are_no_hit(n):
    rng = np.random.default_rng(0)
    empty = np.zeros((0, 2), np.float32)
    matches = pack([candidate(rng, n, n, affine()), (empty, empty)])
    assert Verifier(min_inliers=3).verify(matches) == []


def test_three_matches_give_three_inliers():
    query = np.array([[0, 0], [500, 0], [0, 500]], np.float64)
    found = one(query, query + 100)
    assert found.n_inliers[0] == 3
    np.testing.assert_allclose(found.affines[0], [[1, 0, 100], [0, 1, 100]], atol=1e-9)


def test_identical_points_are_no_hit():
    points = np.full((50, 2), 7.0)
    assert one(points, points).n_inliers[0] == 0
    rng = np.random.default_rng(0)
    assert one(rng.uniform(0, 500, (50, 2)), points).n_inliers[0] == 0
    assert one(points, rng.uniform(0, 500, (50, 2))).n_inliers[0] == 0


def test_collinear_points_give_a_plausible_map_or_none():
    line = np.linspace(0, 900, 40)[:, None] * [1.0, 0.5]
    found = one(line, line + 30)
    # A line leaves the affine open; the similarity through it is the plain answer.
    np.testing.assert_allclose(found.affines[0], [[1, 0, 30], [0, 1, 30]], atol=1e-6)
    rng = np.random.default_rng(0)
    jittered = line + rng.normal(0, 0.5, line.shape)
    scales = np.linalg.svd(one(jittered, line).affines[0][:, :2])[1]
    assert scales[0] / scales[1] <= 4.0 + 1e-6


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e6, 1e18, 3e38])
def test_extreme_coordinates_do_no_harm(size):
    rng = np.random.default_rng(0)
    query = (rng.uniform(-1, 1, (60, 2)) * size).astype(np.float32)
    found = one(query, query[::-1])
    assert np.isfinite(found.affines).all()
    found = one(query, query)
    assert np.isfinite(found.affines).all()


def test_extreme_distances_do_no_harm():
    for value in (0.0, 3e38, -3e38, 1e-45):
        distances = with_value(good().squared_distances, value)
        assert (
            Verifier(min_inliers=8).verify(changed(squared_distances=distances))[0].n_inliers >= 35
        )


def test_one_candidate_of_many_matches():
    rng = np.random.default_rng(0)
    query, database = candidate(rng, 20000, 4000, affine(1.3, 20, 1.2), noise=1.0)
    (hit,) = Verifier(max_error=8.0, min_separation=0.0).verify(pack([(query, database)]))
    assert hit.n_inliers >= 3900

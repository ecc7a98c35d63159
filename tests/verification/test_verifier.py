"""What the verifier finds: planted maps, one-to-one inliers, consistent statistics, rejection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import affine, apply, candidate, mixed_matches, pack
from sklearn.base import clone

from delfsearch import Matches, Verifier


def rows_of(found, i):
    return found.inlier_rows[found.inlier_offsets[i] : found.inlier_offsets[i + 1]]


def least_squares(query, database):
    design = np.c_[query.astype(np.float64), np.ones(len(query))]
    return np.linalg.lstsq(design, database.astype(np.float64), rcond=None)[0].T


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(0.3, 3.0),
    rotation=st.floats(-180, 180),
    stretch=st.floats(1.0, 2.5),
    n_true=st.integers(12, 80),
    outliers=st.floats(0, 0.6),
)
def test_a_planted_affine_is_recovered(seed, scale, rotation, stretch, n_true, outliers):
    rng = np.random.default_rng(seed)
    matrix = affine(scale, rotation, stretch, shift=rng.uniform(-300, 300, 2))
    n = int(n_true / (1 - outliers))
    query, database = candidate(rng, n, n_true, matrix)
    (hit,) = Verifier(max_error=4.0, min_inliers=8, min_separation=0.0).verify(
        pack([(query, database)], [7])
    )
    assert hit.id == 7
    assert hit.score == hit.n_inliers >= n_true
    assert hit.inliers.shape == (hit.n_inliers, 4)
    assert np.abs(apply(hit.affine, query[:n_true]) - database[:n_true]).max() < 2.0


def test_the_map_is_the_least_squares_of_its_inliers():
    rng = np.random.default_rng(1)
    matrix = affine(1.2, 10, 1.2)
    query, database = candidate(rng, 90, 60, matrix, noise=2.0)
    matches = pack([(query, database)])
    found = Verifier(max_error=12.0).verify_all(matches)
    rows = rows_of(found, 0)
    expected = least_squares(query[rows], database[rows])
    assert set(range(60)) <= set(rows)
    np.testing.assert_allclose(found.affines[0], expected, atol=1e-8)


@pytest.mark.parametrize("min_separation", [0.0, 1.0, 8.0])
def test_statistics_are_those_of_the_returned_map(min_separation):
    matches = mixed_matches()
    verifier = Verifier(max_error=12.0, min_separation=min_separation)
    found = verifier.verify_all(matches)
    assert len(found) == len(matches)
    for i in range(len(matches)):
        rows = rows_of(found, i)
        assert len(rows) == found.n_inliers[i]
        assert (np.diff(rows) > 0).all()
        assert ((rows >= matches.offsets[i]) & (rows < matches.offsets[i + 1])).all()
        if len(rows) == 0:
            np.testing.assert_array_equal(found.affines[i], np.eye(2, 3))
            continue
        query = matches.query_xy[rows].astype(np.float64)
        residuals = apply(found.affines[i], query) - matches.database_xy[rows]
        assert (np.hypot(*residuals.T) <= 12.0 + 1e-9).all()
        linear = found.affines[i][:, :2]
        s1, s2 = np.linalg.svd(linear, compute_uv=False)
        assert np.linalg.det(linear) > 0
        assert 0.125 <= np.sqrt(s1 * s2) <= 8 and s1 / s2 <= 4.0 + 1e-6


@pytest.mark.parametrize("min_separation", [0.0, 8.0])
def test_a_keypoint_counts_once_on_either_side(min_separation):
    # Every true match three times over: repeated, and with either end moved to its neighbour's.
    rng = np.random.default_rng(2)
    query, database = candidate(rng, 40, 40, affine(), noise=1.0)
    query = np.concatenate([query, query, np.roll(query, 1, axis=0)])
    database = np.concatenate([database, np.roll(database, 1, axis=0), database])
    found = Verifier(max_error=200.0, min_separation=min_separation).verify_all(
        pack([(query, database)])
    )
    rows = rows_of(found, 0)
    assert len(np.unique(query[rows], axis=0)) == len(rows) <= 40
    assert len(np.unique(database[rows], axis=0)) == len(rows)


@pytest.mark.parametrize("n", [50, 100, 500, 1000])
@pytest.mark.parametrize("n_hubs", [None, 1, 3, 20])
def test_false_candidates_stay_at_chance(n, n_hubs):
    rng = np.random.default_rng(n)
    candidates = []
    for _ in range(8):
        query, database = candidate(rng, n, 0)
        if n_hubs is not None:
            database = database[rng.integers(0, n_hubs, n)]
        candidates.append((query, database))
    found = Verifier(max_error=12.0).verify_all(pack(candidates))
    assert found.n_inliers.max() <= 9


def test_repeated_positions_are_no_new_evidence():
    # One cluster of four places in each photo, matched all to all at five nearly equal scales.
    rng = np.random.default_rng(3)
    places = rng.uniform(300, 420, (4, 2))
    query = np.repeat(places, 5, axis=0) + rng.uniform(-0.3, 0.3, (20, 2))
    found = Verifier(max_error=12.0, min_separation=2.0).verify_all(pack([(query, query + 50)]))
    assert found.n_inliers[0] <= 4


@pytest.mark.parametrize(
    "linear",
    [
        [[-1, 0], [0, 1]],  # mirrored
        [[0.01, 0], [0, 0.01]],  # collapsed
        [[30, 0], [0, 30]],  # blown up
        [[6, 0], [0, 1]],  # stretched
        [[1, 6], [0, 1]],  # sheared
        [[1, 0], [0, 0]],  # flat
    ],
)
def test_implausible_maps_are_refused(linear):
    rng = np.random.default_rng(4)
    query = rng.uniform(0, 1000, (60, 2))
    database = query @ np.array(linear, np.float64).T
    found = Verifier(max_error=4.0).verify_all(pack([(query, database)]))
    assert found.n_inliers[0] < 10


def test_limits_are_parameters():
    rng = np.random.default_rng(5)
    matches = pack([candidate(rng, 60, 60, affine(1.0, 50, 1.0))])
    assert len(Verifier(max_rotation=60, min_inliers=20).verify(matches)) == 1
    assert Verifier(max_rotation=40, max_error=4.0, min_inliers=20).verify(matches) == []
    matches = pack([candidate(rng, 60, 60, affine(3.0, 0, 1.0))])
    assert len(Verifier(max_scale=3.1, min_inliers=20).verify(matches)) == 1
    assert Verifier(max_scale=2.5, max_error=4.0, min_inliers=20).verify(matches) == []


@settings(max_examples=25, deadline=None)
@given(dx=st.integers(-4000, 4000), dy=st.integers(-4000, 4000), seed=st.integers(0, 1000))
def test_translation_changes_only_the_translation(dx, dy, seed):
    # Coordinates on a grid of 1/8 px stay exact when shifted by whole pixels.
    rng = np.random.default_rng(seed)
    query, database = candidate(rng, 60, 35, affine(1.1, -15, 1.2), noise=2.0)
    query, database = np.round(query * 8) / 8, np.round(database * 8) / 8
    before = Verifier(max_error=12.0).verify_all(pack([(query, database)]))
    after = Verifier(max_error=12.0).verify_all(pack([(query, database + np.array([dx, dy]))]))
    np.testing.assert_array_equal(before.inlier_rows, after.inlier_rows)
    np.testing.assert_allclose(after.affines[0, :, :2], before.affines[0, :, :2], atol=1e-9)
    np.testing.assert_allclose(
        after.affines[0, :, 2], before.affines[0, :, 2] + [dx, dy], atol=1e-5
    )


def test_hits_come_best_first_and_ties_by_lower_id():
    rng = np.random.default_rng(8)
    strong = candidate(rng, 50, 50, affine())
    weak = candidate(rng, 20, 20, affine())
    matches = pack([weak, strong, weak, candidate(rng, 50, 0)], image_ids=[9, 5, 3, 1])
    hits = Verifier(min_inliers=12, min_separation=0.0).verify(matches)
    assert [hit.id for hit in hits] == [5, 3, 9]
    assert [hit.n_inliers for hit in hits] == [50, 20, 20]
    assert [hit.id for hit in Verifier().verify(matches, min_inliers=25)] == [5]
    assert Verifier().verify(matches, min_inliers=51) == []


def test_min_inliers_changes_what_is_returned_and_nothing_else():
    matches = mixed_matches()
    loose = {h.id: h for h in Verifier(min_inliers=3).verify(matches)}
    for hit in Verifier(min_inliers=3).verify(matches, min_inliers=12):
        assert hit.n_inliers == loose[hit.id].n_inliers >= 12
        np.testing.assert_array_equal(hit.affine, loose[hit.id].affine)


def test_estimator_contract():
    verifier = Verifier(max_error=7.5, random_state=3)
    copy = clone(verifier)
    assert copy.get_params() == verifier.get_params()
    assert copy.set_params(max_error=3.0).max_error == 3.0
    assert "max_error=7.5" in repr(verifier)


def test_verify_many_is_verify_of_each():
    queries = [mixed_matches(seed, 10) for seed in range(3)] + [Matches.empty()]
    verifier = Verifier(min_inliers=8)
    for many, matches in zip(verifier.verify_many(queries), queries):
        one = verifier.verify(matches)
        assert [(h.id, h.n_inliers) for h in many] == [(h.id, h.n_inliers) for h in one]
        for a, b in zip(many, one):
            np.testing.assert_array_equal(a.affine, b.affine)
            np.testing.assert_array_equal(a.inliers, b.inliers)
    assert verifier.verify_many([]) == []

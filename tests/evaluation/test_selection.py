"""Selection mass: slow references, and cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from extraction.conftest import META, attention_tensors, pca_arrays, random_tensors, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator

from delfsearch import DelfExtractor, DelfIndex, LocalFeatures, Verifier
from delfsearch.errors import DatasetError, PhotoError, WeightsError
from delfsearch.evaluation import (
    SelectionMass,
    TruePair,
    mass_on_matches,
    matched_cells,
    selection_mass,
    true_pairs,
)
from delfsearch.evaluation.datasets import Dataset, Query
from delfsearch.extraction.weights import save_weights

# -- one score on one photo ------------------------------------------------------------------------


def slow_mass(scores, matched, n_selected):
    total = on_matched = n_matched = 0.0
    for score, hit in zip(scores, matched):
        total += score
        on_matched += score if hit else 0.0
        n_matched += hit
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n_selected]
    precision = sum(bool(matched[i]) for i in ranked) / len(ranked)
    return on_matched / total, n_matched / len(scores), precision


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 50))
def test_is_the_slow_reference(seed, n, n_selected):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, n).astype(np.float32) / 2  # with ties
    scores[rng.integers(n)] = 1.5
    matched = rng.random(n) < 0.3
    found = mass_on_matches(scores, matched, n_selected=n_selected)
    assert found == pytest.approx(slow_mass(scores, matched, n_selected), rel=1e-12)
    assert mass_on_matches(scores * 4, matched, n_selected=n_selected) == pytest.approx(found)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_a_perfect_score_has_all_the_mass_and_a_constant_one_no_lift(hits):
    matched = np.array(hits)
    perfect = mass_on_matches(matched.astype(float), matched, n_selected=int(matched.sum()))
    assert perfect.mass == perfect.precision == 1
    assert perfect.lift == pytest.approx(len(hits) / matched.sum())
    constant = mass_on_matches(np.full(len(hits), 0.7), matched)
    assert constant.lift == pytest.approx(1)
    assert constant.mass == pytest.approx(constant.cell_share) == pytest.approx(constant.precision)
    if not matched.all():
        assert mass_on_matches(~matched, matched, n_selected=1)[::2] == (0, 0)


def test_without_matches_there_is_no_lift():
    found = mass_on_matches([1, 2], [False, False])
    assert (found.mass, found.cell_share, found.precision) == (0, 0, 0) and np.isnan(found.lift)


@pytest.mark.parametrize(
    "scores, matched, options, message",
    [
        ([1, -1], [True, False], {}, "scores must be at least 0"),
        ([0, 0], [True, False], {}, "not all 0"),
        ([], [], {}, "got a minimum of no score"),
        ([1, np.nan], [True, False], {}, "scores must be finite"),
        ([1, 2], [True], {}, "is_matched must have 2 elements; got 1"),
        ([1, 2], [True, False], {"n_selected": 0}, "n_selected must be at least 1; got 0"),
    ],
)
def test_refuses_what_has_no_mass(scores, matched, options, message):
    with pytest.raises(ValueError, match=message):
        mass_on_matches(scores, matched, **options)


# -- matched cells ---------------------------------------------------------------------------------

N, N_PLANTED = 300, 120


def planted(seed=0, n_planted=N_PLANTED):
    """Two photos of N features; the first n_planted of one are, shuffled, among the other's."""
    rng = np.random.default_rng(seed)
    xy = [rng.uniform(0, 2000, (N, 2)) for _ in range(2)]
    descriptors = [rng.standard_normal((N, 40)) for _ in range(2)]
    rows = rng.permutation(N)[:n_planted]
    xy[1][rows] = xy[0][:n_planted] @ [[0.8, 0.1], [-0.1, 0.8]] + (30, 9)
    descriptors[1][rows] = descriptors[0][:n_planted]
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in descriptors]
    masks = np.arange(N) < n_planted, np.isin(np.arange(N), rows)
    return [LocalFeatures(x, d) for x, d in zip(xy, unit)], masks


def test_planted_matches_are_found():
    (query, database), expected = planted()
    # Random unit vectors are about 2 apart (squared), none of these less than 0.64.
    index = DelfIndex(k=1, max_squared_distance=0.64)
    found = matched_cells(query, database, index=index, min_inliers=100)
    for mask, truth in zip(found, expected):
        assert mask.dtype == bool and np.array_equal(mask, truth)
    found = matched_cells(query, database, index=index, verifier=Verifier(min_inliers=120))
    assert not found[0].any() and not found[1].any()  # fewer than the default of this module
    found = matched_cells(
        query, database, index=index, verifier=Verifier(min_inliers=120), min_inliers=None
    )
    assert np.array_equal(found[0], expected[0])


def test_photos_without_features_match_nothing():
    (query, _), _ = planted()
    nothing = LocalFeatures.empty(40)
    for pair in ((query, nothing), (nothing, query), (nothing, nothing)):
        found = matched_cells(*pair)
        assert [len(mask) for mask in found] == [len(photo) for photo in pair]
        assert not found[0].any() and not found[1].any()
    with pytest.raises(ValueError, match="min_inliers must be at least 3"):
        matched_cells(query, query, min_inliers=2)


# -- pairs -----------------------------------------------------------------------------------------


class Planted(BaseEstimator):
    """An extractor of planted photos: "good" is 1 on the planted features, "flat" 1 everywhere.

    Like a real one it returns features best first, by the score that it has.
    """

    def __init__(self, photos, score="flat", max_features=5, score_threshold=0.5, iou_threshold=1):
        self.photos = photos
        self.score = score
        self.max_features = max_features
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold

    max_squared_distance = 0.64

    def stream(self, photos):
        assert self.max_features > N and self.score_threshold is None and self.iou_threshold == 1
        for name in photos:
            if name not in self.photos:
                yield name, PhotoError(f"cannot read {name}")
                continue
            features, mask = self.photos[name]
            rng = np.random.default_rng(4)
            values = {"good": mask, "flat": np.ones(N), "bad": 2 - mask, "noise": rng.random(N)}
            scored = LocalFeatures(
                features.keypoints_xy, features.descriptors, values[self.score].astype(float)
            )
            yield name, scored[np.argsort(-scored.scores, kind="stable")]


@pytest.fixture(scope="module")
def measured():
    photos, pairs = {}, []
    for number, scene in enumerate(("tower", "tower", "bridge", "gate")):
        both, masks = planted(number, n_planted=5 if scene == "gate" else N_PLANTED + number)
        names = f"q{number}", f"d{number}"
        photos |= {name: value for name, value in zip(names, zip(both, masks))}
        pairs.append(TruePair(*names, id=f"pair{number}", scene=scene))
    pairs.insert(1, TruePair("q0", "absent", id="torn", scene="tower"))
    scores = ("good", "flat", "bad", "noise")
    options = {"min_inliers": 50, "n_selected": 60}
    return selection_mass(pairs, Planted(photos), scores=scores, **options)


def test_scores_of_pairs(measured):
    assert measured.n_pairs == 5
    assert measured.unverified == ("pair3",)
    assert measured.unreadable == {"torn": "cannot read absent"}
    assert measured.ids == tuple(
        (f"pair{number}", side) for number in range(3) for side in ("query", "positive")
    )
    assert measured.scenes == ("tower",) * 4 + ("bridge",) * 2
    share = np.repeat([120, 121, 122], 2) / N
    np.testing.assert_allclose(measured.cell_share, share)
    assert (measured.values("mass", "good") == 1).all()
    np.testing.assert_allclose(measured.values("lift", "good"), 1 / share)
    assert (measured.values("precision", "good") == 1).all()
    np.testing.assert_allclose(measured.values("lift", "flat"), 1)
    np.testing.assert_allclose(measured.values("mass", "bad"), share / (share + 2 * (1 - share)))
    assert (measured.values("precision", "bad") == 0).all()
    # Random scores have about the mass of a constant one; they are not aligned by chance.
    assert 0.8 < measured.values("lift", "noise").mean() < 1.2
    with pytest.raises(ValueError, match="measure must be one of 'mass', 'lift', 'precision'"):
        measured.values("share", "good")
    with pytest.raises(ValueError, match="score must be one of 'good', 'flat', 'bad', 'noise'"):
        measured.values("mass", "l2")


def test_intervals_draw_scenes(measured):
    values = measured.values("mass", "noise")
    found = measured.interval("mass", "noise", n_resamples=200, random_state=1)
    assert found.value == pytest.approx(values.mean()) and found.n_clusters == 2
    tower, bridge = values[:4], values[4:]
    possible = [np.concatenate(two).mean() for two in ([tower, tower], [tower, bridge], [bridge])]
    nearest = np.abs(found.samples[:, None] - possible)
    assert nearest.min(axis=1).max() < 1e-12 and set(nearest.argmin(axis=1)) == {0, 1, 2}

    difference = measured.difference("mass", "good", "noise", n_resamples=200, random_state=1)
    assert difference.difference == pytest.approx((1 - values).mean())
    np.testing.assert_allclose(difference.samples, 1 - found.samples)  # the same resamples
    assert difference.low > 0


def test_scores_of_other_weights_are_compared_on_the_photos_of_both(measured):
    rows = [1, 2, 3, 5]
    other = SelectionMass(
        ids=(*(measured.ids[row] for row in rows), ("elsewhere", "query")),
        scenes=(*(measured.scenes[row] for row in rows), "gate"),
        cell_share=np.append(measured.cell_share[rows] / 2, 0.1),
        mass={"l2": np.append(measured.mass["noise"][rows], 0.9)},
        precision={"l2": np.zeros(5)},
        n_pairs=5,
    )
    found = measured.difference("lift", "noise", "l2", other=other, n_resamples=20)
    lift = measured.values("lift", "noise")[rows].mean()
    assert found.first == pytest.approx(lift) and found.second == pytest.approx(2 * lift)


def test_parts_of_different_pairs_are_pooled(measured):
    n = len(measured.ids)

    def part(rows):
        return SelectionMass(
            ids=tuple(measured.ids[i] for i in rows),
            scenes=tuple(measured.scenes[i] for i in rows),
            cell_share=measured.cell_share[rows],
            mass={score: values[rows] for score, values in measured.mass.items()},
            precision={score: values[rows] for score, values in measured.precision.items()},
            n_pairs=len(rows) // 2,
        )

    halves = [part(list(range(2))), part(list(range(2, n)))]
    whole = SelectionMass.pooled(halves)
    assert whole.ids == measured.ids and whole.scenes == measured.scenes
    assert whole.n_pairs == n // 2
    for score in measured.mass:
        for measure in ("mass", "lift", "precision"):
            assert np.array_equal(whole.values(measure, score), measured.values(measure, score))
    turned = SelectionMass.pooled(halves[::-1])  # compared photo by photo, in whatever order
    found = measured.difference("mass", "good", "good", other=turned, n_resamples=20)
    assert found.difference == found.low == found.high == 0.0
    with pytest.raises(ValueError, match="different pairs"):
        SelectionMass.pooled([halves[0], halves[0]])
    with pytest.raises(ValueError, match="at least one"):
        SelectionMass.pooled([])


def test_without_a_verified_pair_everything_is_unknown():
    both, masks = planted(0, n_planted=0)
    photos = dict(zip("qd", zip(both, masks)))
    found = selection_mass([TruePair("q", "d", "pair")], Planted(photos), scores=["flat"])
    assert found.ids == () and found.unverified == ("pair",)
    assert found.values("lift", "flat").shape == (0,)
    interval = found.interval("lift", "flat", n_resamples=5)
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_refuses_pairs_and_scores_that_are_none():
    pair = TruePair("a", "b", "one")
    with pytest.raises(ValueError, match="pairs must be at least one, with different ids; got 0"):
        selection_mass([], Planted({}))
    with pytest.raises(ValueError, match="with different ids; got 2"):
        selection_mass([pair, pair], Planted({}))
    for scores in ((), "l2"):
        with pytest.raises(ValueError, match="scores must be a list that names"):
            selection_mass([pair], Planted({}), scores=scores)


# -- the real extractor ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "attention.safetensors"
    save_weights(path, {**random_tensors(), **attention_tensors(), **pca_arrays()}, META)
    return path


def _cells(levels):
    """The score and the place of every cell of all levels, one after the other."""
    return [
        (value, tuple(place))
        for level in levels
        for value, place in zip(
            level.scores.ravel().tolist(), level.keypoints_xy.reshape(-1, 2).tolist()
        )
    ]


def _in_order(features, places):
    row_of = {tuple(place): row for row, place in enumerate(features.keypoints_xy.tolist())}
    assert len(row_of) == len(features) == len(places)
    return features[[row_of[place] for place in places]]


def test_is_the_slow_way_over_score_maps(weights):
    """The matched positions of a Hit, looked up in the score maps cell by cell."""
    big = texture(352, 288, 5)
    query, positive = big[:256, :288], big[32:, 64:]
    extractor = DelfExtractor(
        weights,
        scales=(0.5, 1.0),
        n_components=8,
        precision="fp32",
        n_jobs=1,
        max_features=7,  # what it would select does not count
        score_threshold=1e9,
        iou_threshold=0.3,
    )
    pair = TruePair(query, positive, "shifted")
    options = {"min_inliers": 20, "n_selected": 15}
    found = selection_mass([pair], extractor, **options)
    assert found.ids == (("shifted", "query"), ("shifted", "positive"))

    everything = DelfExtractor(
        weights, scales=(0.5, 1.0), n_components=8, precision="fp32", n_jobs=1, max_features=10**6
    )
    photos = query, positive
    maps = {
        score: [_cells(everything.set_params(score=score).score_map(photo)) for photo in photos]
        for score in ("l2", "attention")
    }
    # RANSAC's draws depend on the order of the features: that of the cells of the score maps.
    features = [
        _in_order(found, [place for _, place in cells])
        for found, cells in zip(everything.transform(photos), maps["l2"])
    ]
    matches = DelfIndex(k=1, max_leaves=10**6).fit([features[1]]).query(features[0])
    (hit,) = Verifier(min_inliers=20).verify(matches)
    assert set(found.mass) == set(maps)
    for row, xy in enumerate((hit.inliers[:, :2], hit.inliers[:, 2:])):
        inliers = {tuple(place) for place in xy.tolist()}
        for score, cells in maps.items():
            matched = [place in inliers for _, place in cells[row]]
            assert sum(matched) == hit.n_inliers < len(matched)
            expected = slow_mass([value for value, _ in cells[row]], matched, 15)
            measured = (found.mass[score][row], found.cell_share[row], found.precision[score][row])
            assert measured == pytest.approx(expected, rel=1e-6)
    assert extractor.max_features == 7 and extractor.score == "auto"  # left as it was


def test_a_score_that_the_weights_lack(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_weights(path, {**random_tensors(), **pca_arrays()}, META)
    photo = texture(64, 64)
    with pytest.raises(WeightsError, match="attention"):
        selection_mass([TruePair(photo, photo, "a")], DelfExtractor(path, n_components=8))


def test_what_fit_learned_counts(weights):
    photos = [texture(120, 100, seed) for seed in (1, 2)]
    extractor = DelfExtractor(
        weights, scales=(1.0,), n_components=20, precision="fp32", n_jobs=1, max_features=10**3
    )
    extractor.fit(photos)  # more components than come with the weights
    pair = TruePair(photos[0], photos[0], "itself")
    found = selection_mass([pair], extractor, scores=["l2"], min_inliers=10)
    assert (found.cell_share == 1).all()  # every cell is its own nearest neighbour
    np.testing.assert_allclose(found.values("lift", "l2"), 1)


# -- pairs of a set --------------------------------------------------------------------------------


def a_dataset(**changes):
    database = tuple(f"d{i}" for i in range(12))
    queries = tuple(
        Query(
            f"q{i}",
            Path(f"/photos/q{i}"),
            positives=frozenset(database[2 * i : 2 * i + 2]),
            scene=f"scene{i}",
        )
        for i in range(6)
    )
    paths = {name: Path("/photos") / name for name in database}
    values = {"database": database, "queries": queries, "paths": paths, "headline": ("q0", "q3")}
    return Dataset(name="set", root=Path("/photos"), **(values | changes)).check()


def test_true_pairs_are_headline_queries_with_a_positive():
    pairs = true_pairs(a_dataset())
    assert [(pair.id, pair.scene) for pair in pairs] == [("q0", "scene0"), ("q3", "scene3")]
    assert pairs[1].query == Path("/photos/q3")
    assert pairs[1].positive in {Path("/photos/d6"), Path("/photos/d7")}


def test_true_pairs_are_drawn():
    every = a_dataset(headline=())
    assert [pair.id for pair in true_pairs(every)] == [f"q{i}" for i in range(6)]
    assert len(true_pairs(every, n_pairs=99)) == 6
    draws = [true_pairs(every, n_pairs=3, random_state=seed) for seed in range(40)]
    assert draws[7] == true_pairs(every, n_pairs=3, random_state=7)
    for pairs in draws:
        ids = [pair.id for pair in pairs]
        assert len(set(ids)) == 3 and ids == sorted(ids)
        for pair in pairs:
            number = int(pair.id[1:])
            assert pair.positive.name in {f"d{2 * number}", f"d{2 * number + 1}"}
    # Every query and every positive has its turn.
    assert {pair.id for pairs in draws for pair in pairs} == {f"q{i}" for i in range(6)}
    assert len({pair.positive for pairs in draws for pair in pairs}) == 12
    with pytest.raises(ValueError, match="n_pairs must be at least 1"):
        true_pairs(every, n_pairs=0)


def test_a_photo_makes_no_pair_with_itself():
    path = Path("/photos/d0")
    query = Query("q", path, positives=frozenset({"d0", "d5"}), photo="d0")
    dataset = a_dataset(queries=(query,), headline=(), exclude_self=False)
    for seed in range(8):
        (pair,) = true_pairs(dataset, random_state=seed)
        assert pair.positive == Path("/photos/d5")
    alone = Query("q", path, positives=frozenset({"d0"}), photo="d0")
    with pytest.raises(DatasetError, match="true pairs need queries with positives"):
        true_pairs(a_dataset(queries=(alone,), headline=(), exclude_self=False))


def test_a_set_that_is_judged_by_location_has_no_true_pairs():
    located = Query("q", Path("/photos/q"), location=(1.0, 2.0))
    dataset = a_dataset(queries=(located,), headline=(), radius_km=25.0)
    with pytest.raises(DatasetError, match="set: true pairs need queries with positives"):
        true_pairs(dataset)

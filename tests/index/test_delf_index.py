"""DelfIndex against brute force over the decoded codes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from search_helpers import (
    DIMENSION,
    as_dict,
    brute_force,
    make_collection,
    make_features,
    same_matches,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from delfsearch import _core
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex

ALL = 10**6  # leaves: more than there are


@pytest.fixture
def photos() -> list[LocalFeatures]:
    return make_collection()


@pytest.fixture
def query() -> LocalFeatures:
    return make_features(np.random.default_rng(5), 20)


@pytest.mark.parametrize("k", [1, 5, 40, 500])
def test_every_pair_of_brute_force_is_there_grouped_by_photo(photos, query, k):
    index = DelfIndex().fit(photos)
    expected = brute_force(index, query, k)
    matches = index.query(query, k=k, max_leaves=ALL)
    found = as_dict(matches)
    assert {i: {pair[:2] for pair in pairs} for i, pairs in found.items()} == {
        i: set(pairs) for i, pairs in expected.items()
    }
    for image_id, pairs in found.items():
        stored = index.features_of(image_id)
        for q, d, qx, qy, dx, dy, squared in pairs:
            assert squared == pytest.approx(expected[image_id][q, d], rel=1e-3, abs=1e-3)
            assert (qx, qy) == tuple(map(float, query.keypoints_xy[q]))
            assert (dx, dy) == tuple(map(float, stored.keypoints_xy[d]))
        assert [pair[0] for pair in pairs] == sorted(pair[0] for pair in pairs)
    votes = {i: len({pair[0] for pair in pairs}) for i, pairs in found.items()}
    assert list(found) == sorted(votes, key=lambda i: (-votes[i], i))
    assert matches.image_ids.dtype == matches.offsets.dtype == np.int64
    assert matches.query_indices.dtype == matches.database_indices.dtype == np.int32
    assert matches.database_xy.dtype == matches.squared_distances.dtype == np.float32


@pytest.mark.parametrize("vote", ["count", "distance"])
def test_neighbours_beyond_the_largest_distance_are_no_matches(photos, query, vote):
    index = DelfIndex().fit(photos)
    pairs = brute_force(index, query, 40)
    every = sorted(squared for found in pairs.values() for squared in found.values())
    limit = (every[len(every) // 2] + every[len(every) // 2 + 1]) / 2
    index.set_params(max_squared_distance=limit, vote=vote)
    found = as_dict(index.query(query, k=40, max_leaves=ALL))
    expected = {
        i: {pair for pair, squared in near.items() if squared <= limit} for i, near in pairs.items()
    }
    assert {i: {pair[:2] for pair in pairs} for i, pairs in found.items()} == {
        i: near for i, near in expected.items() if near
    }
    index.set_params(max_squared_distance=0.0)
    assert len(index.query(query)) == 0


def test_shortlist_keeps_the_photos_with_most_votes_and_all_their_pairs(photos, query):
    index = DelfIndex(k=20, max_leaves=ALL).fit(photos)
    everything = as_dict(index.query(query))
    short = as_dict(index.query(query, max_candidates=2))
    assert list(short.items()) == list(everything.items())[:2]


def test_equal_votes_are_ordered_by_id():
    photo = make_features(np.random.default_rng(1), 10)
    index = DelfIndex(k=60, max_leaves=ALL).fit([photo] * 6, ids=[9, 4, 7, 1, 30, 2])
    assert index.query(photo).image_ids.tolist() == [1, 2, 4, 7, 9, 30]
    assert index.query(photo, max_candidates=3).image_ids.tolist() == [1, 2, 4]


def test_a_query_feature_votes_once_for_a_photo_however_many_neighbours_it_has_there():
    rng = np.random.default_rng(2)
    one = make_features(rng, 1)
    repeated = one[np.zeros(9, int)]
    spread = LocalFeatures(rng.uniform(0, 9, (2, 2)), np.repeat(one.descriptors, 2, axis=0) + 0.5)
    index = DelfIndex(k=11, max_leaves=ALL).fit([repeated, spread])
    queries = LocalFeatures(rng.uniform(0, 9, (2, 2)), np.repeat(one.descriptors, 2, axis=0))
    matches = index.query(queries)
    # Two votes each: the tie goes to the lower id although it holds 18 of the 22 pairs.
    assert matches.image_ids.tolist() == [0, 1]
    assert np.diff(matches.offsets).tolist() == [18, 4]


def test_votes_by_distance_are_one_minus_d_over_the_farthest(photos, query):
    index = DelfIndex(k=30, max_leaves=ALL, vote="distance").fit(photos)
    found = as_dict(index.query(query))
    nearest: dict[tuple[int, int], float] = {}
    farthest: dict[int, float] = {}
    for image_id, pairs in found.items():
        for q, *_, squared in pairs:
            nearest[image_id, q] = min(nearest.get((image_id, q), np.inf), squared)
            farthest[q] = max(farthest.get(q, 0.0), squared)
    votes = {i: 0.0 for i in found}
    for (image_id, q), squared in nearest.items():
        votes[image_id] += 1.0 - squared / farthest[q]
    assert list(found) == sorted(votes, key=lambda i: (-votes[i], i))


def test_excluded_photos_take_no_place_among_the_k(photos, query):
    index = DelfIndex(max_leaves=ALL).fit(photos)
    for excluded in ([4], [0, 2, 4], [1], [99], []):
        for k in (1, 7, 64, 1000):
            answer = index.query(query, k=k, exclude_ids=excluded)
            rest = DelfIndex(max_leaves=ALL, merge_factor=0).fit(photos)
            rest.remove([i for i in excluded if i != 99])
            assert same_matches(answer, rest.query(query, k=k)), (excluded, k)


def test_a_photo_that_holds_all_nearest_neighbours_is_left_out_wholly():
    rng = np.random.default_rng(3)
    crowd = LocalFeatures(rng.uniform(0, 9, (500, 2)), rng.normal(size=(500, DIMENSION)) * 1e-3)
    others = [make_features(rng, 40) for _ in range(3)]
    index = DelfIndex(k=5, max_leaves=ALL).fit([crowd, *others])
    matches = index.query(crowd[:50], exclude_ids=[0])
    assert 0 not in matches.image_ids
    assert len(matches.query_indices) == 50 * 5


def test_query_many_gives_the_answers_of_query(photos):
    index = DelfIndex(k=9).fit(photos)
    excluded = [[i] if i % 2 else None for i in range(len(photos))]
    many = index.query_many(photos, exclude_ids=excluded)
    for photo, ids, answer in zip(photos, excluded, many):
        assert same_matches(answer, index.query(photo, exclude_ids=ids))
    assert index.query_many([]) == []


def test_query_many_splits_large_batches(monkeypatch, photos):
    monkeypatch.setattr("delfsearch.index.aggregation._BATCH", 50)
    index = DelfIndex(k=9).fit(photos)
    for photo, answer in zip(photos, index.query_many(photos)):
        assert same_matches(answer, index.query(photo))


def test_answers_do_not_depend_on_threads_or_segments(photos, query):
    whole = DelfIndex(k=16, max_leaves=ALL).fit(photos)
    pieces = DelfIndex(k=16, max_leaves=ALL, merge_factor=0, n_jobs=2).fit(photos)
    # The same quantizer, the photos spread over segments in another order.
    for image_id in (4, 0, 2, 1):
        pieces.update([image_id], [photos[image_id]])
    assert len(pieces._segments.view.segments) == 5
    assert same_matches(pieces.query(query), whole.query(query))
    assert same_matches(pieces.merge().query(query), whole.query(query))
    assert len(pieces._segments.view.segments) == 1


def test_features_come_back_exact_but_for_the_descriptors(photos):
    index = DelfIndex().fit(photos)
    for image_id, photo in enumerate(photos):
        back = index.features_of(image_id)
        for name in ("keypoints_xy", "scores", "scales"):
            np.testing.assert_array_equal(getattr(back, name), getattr(photo, name))
        assert back.image_size == photo.image_size
        np.testing.assert_allclose(back.descriptors, photo.descriptors, atol=0.05)


def test_photos_without_features_are_indexed_and_never_match(photos, query):
    index = DelfIndex().fit(photos)
    assert 1 in index.ids
    assert len(index.features_of(1)) == 0
    assert 1 not in index.query(query, k=1000).image_ids
    assert len(index.query(LocalFeatures.empty(DIMENSION))) == 0
    assert len(index.query(LocalFeatures.empty(3))) == 0


def test_an_index_of_photos_without_features_answers_nothing_and_can_grow(query):
    index = DelfIndex().fit([LocalFeatures.empty(3)])
    assert len(index) == 1 and index.n_descriptors == 0
    index.add([query])
    assert index.dimension_ == DIMENSION
    assert index.query(query).image_ids.tolist() == [1]


def test_ids_are_never_used_twice(photos, query):
    index = DelfIndex().fit(photos[:3])
    index.remove([2])
    assert index.add([query]).tolist() == [3]
    index.remove([0, 1, 3])
    assert len(index) == 0
    assert index.add([query, query]).tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"at least 6.*never used twice.*got 3"):
        index.add([query], ids=[3])
    assert index.add([query], ids=[2**40]).tolist() == [2**40]
    assert index.add([query]).tolist() == [2**40 + 1]


def test_update_keeps_the_id_and_replaces_the_features(photos, query):
    index = DelfIndex().fit(photos, metadata=[{"path": f"{i}.jpg", "n": i} for i in range(7)])
    index.update([4], [query])
    assert len(index) == 7
    assert index.image(4).path == "4.jpg" and index.image(4).metadata == {"n": 4}
    np.testing.assert_array_equal(index.features_of(4).keypoints_xy, query.keypoints_xy)
    assert index.query(query, k=1).image_ids.tolist() == [4]
    index.update([4], [photos[0]], metadata=[{"path": "new.jpg"}])
    assert index.image(4).path == "new.jpg" and index.image(4).metadata == {}
    with pytest.raises(KeyError, match="no photo with id 70"):
        index.update([70], [query])


def test_additions_are_merged_into_few_segments(photos):
    rng = np.random.default_rng(0)
    index = DelfIndex(leaf_size=16).fit([make_features(rng, 400)])
    for _ in range(60):
        index.add([make_features(rng, 10)])
    assert len(index._segments.view.segments) <= 4
    assert index.n_descriptors == 1000


def test_segments_that_are_mostly_deleted_are_rebuilt():
    rng = np.random.default_rng(0)
    index = DelfIndex().fit([make_features(rng, 20) for _ in range(10)])
    index.remove(range(3))
    assert index.memory_usage()["keypoints"] == 8 * 200
    index.remove(range(3, 7))
    assert index.memory_usage()["keypoints"] == 8 * 60


@pytest.mark.parametrize("method", ["kdtree", "ivf"])
def test_memory_usage_adds_up(photos, tmp_path, method):
    index = DelfIndex(method=method, code="4x5").fit(photos)
    usage = index.memory_usage()
    searched = {"kdtree": ("codes_and_tree",), "ivf": ("codes", "ids", "leaves", "codebooks")}
    parts = (*searched[method], "photos", "keypoints", "scores_and_scales")
    parts += ("exact",) if method == "ivf" else ()
    assert usage["in_memory"] == sum(usage[part] for part in (*searched[method], "photos"))
    assert usage["total"] == sum(usage[part] for part in parts)
    assert usage["mapped"] == 0
    assert usage["bytes_per_descriptor"] == usage["total"] / index.n_descriptors
    saved = index.save(tmp_path / "index").memory_usage()
    assert all(saved[part] == usage[part] for part in parts)
    assert 0 < saved["mapped"] <= saved["total"]


def test_metadata_has_columns_for_what_it_knows():
    photo = make_features(np.random.default_rng(0), 3)
    metadata = {
        "path": "été/фото.jpg",
        "label": "Łódź",
        "content_hash": "ab",
        "latitude": 51.77,
        "longitude": -19.45,
        "camera": {"iso": 100},
    }
    index = DelfIndex().fit([photo, photo], metadata=[metadata, None])
    record = index.image(0)
    assert (record.path, record.label, record.latitude) == ("été/фото.jpg", "Łódź", 51.77)
    assert record.metadata == {"camera": {"iso": 100}}
    assert (record.width, record.height, record.n_features) == (640, 480, 3)
    assert index.image(1).path is None
    assert [r.id for r in index.find(path="été/фото.jpg")] == [0]
    assert [r.id for r in index.find(content_hash="ab")] == [0]
    assert [r.id for r in index.images()] == [0, 1]


@pytest.mark.parametrize(
    ("metadata", "error", "text"),
    [
        (["a.jpg"], TypeError, "one mapping per photo"),
        ([{"path": 3}], TypeError, "path must be a string"),
        ([{"latitude": 91}], ValueError, "latitude must be at most 90"),
        ([{"x": object()}], ValueError, "JSON"),
        ([{"x": float("nan")}], ValueError, "JSON"),
        ([{3: 3}], TypeError, "keys must be strings"),
        ([{"path": "\udcff"}], ValueError, "not valid Unicode"),
        ([{}, {}], ValueError, "one entry per photo"),
    ],
)
def test_bad_metadata_is_refused_and_nothing_changes(metadata, error, text):
    photo = make_features(np.random.default_rng(0), 3)
    index = DelfIndex().fit([photo])
    with pytest.raises(error, match=text):
        index.add([photo], metadata=metadata)
    assert len(index) == 1 and index.add([photo]).tolist() == [1]


def test_uint8_descriptors_are_numbers_from_0_to_255():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (50, 16), dtype=np.uint8)
    photo = LocalFeatures(rng.uniform(0, 9, (50, 2)), codes)
    index = DelfIndex(clip_quantile=1.0).fit([photo])
    np.testing.assert_allclose(index.features_of(0).descriptors, codes, atol=0.51)
    assert index.query(photo, k=1).database_indices.tolist() == list(range(50))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.astype(np.float64),
        np.asfortranarray,
        lambda d: np.repeat(d, 2, axis=1)[:, ::2],
        lambda d: np.concatenate([d, d])[: len(d)],
    ],
    ids=["float64", "fortran", "strided", "sliced"],
)
def test_layouts_of_descriptors_do_not_matter(photos, query, change):
    expected = DelfIndex().fit(photos).query(query)
    changed = [
        LocalFeatures(np.asfortranarray(p.keypoints_xy), change(p.descriptors), p.scores, p.scales)
        for p in photos
    ]
    index = DelfIndex().fit(changed)
    asked = LocalFeatures(change(query.keypoints_xy), change(query.descriptors))
    assert same_matches(index.query(asked), expected)


def test_bad_input_is_refused_by_name(photos, query):
    index = DelfIndex().fit(photos)
    wrong = make_features(np.random.default_rng(0), 4, dimension=9)
    with pytest.raises(ValueError, match=r"must have 8 columns \(as in fit\); got 9"):
        index.query(wrong)
    with pytest.raises(ValueError, match=r"must have 8 columns \(as in fit\); got 9"):
        index.add([photos[0], wrong])
    with pytest.raises(ValueError, match="must have 8 columns"):
        index.update([0], [wrong])
    with pytest.raises(ValueError, match="as in the first photo"):
        DelfIndex().fit([photos[0], wrong])
    with pytest.raises(TypeError, match="must be LocalFeatures; got ndarray"):
        index.query(query.descriptors)
    with pytest.raises(TypeError, match="must be LocalFeatures; got ndarray"):
        index.add([query.descriptors])
    for call in (index.add, index.query_many, DelfIndex().fit, lambda f: index.update([0], f)):
        with pytest.raises(TypeError, match=r"Pass \[features\]"):
            call(query)
        with pytest.raises(TypeError, match="list of LocalFeatures; got int"):
            call(3)
    with pytest.raises(ValueError, match="at least one photo"):
        DelfIndex().fit([])
    with pytest.raises(ValueError, match="distinct"):
        DelfIndex().fit(photos[:2], ids=[3, 3])
    with pytest.raises(ValueError, match="at least 0"):
        DelfIndex().fit(photos[:2], ids=[3, -1])
    with pytest.raises(ValueError, match="2 elements"):
        DelfIndex().fit(photos[:2], ids=[3])
    with pytest.raises(KeyError, match="no photo with id 50"):
        index.remove([0, 50])
    assert len(index) == len(photos)
    for name in ("k", "max_leaves", "max_candidates"):
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"{name} must be at least 1"):
                index.query(query, **{name: value})
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            index.query(query, **{name: 1.5})
    with pytest.raises(ValueError, match="one entry per query photo"):
        index.query_many([query], exclude_ids=[None, None])
    assert index.add([]).tolist() == [] and index.remove([]) is None


def test_querying_an_index_without_photos_says_so(query):
    index = DelfIndex().fit([query])
    index.remove([0])
    with pytest.raises(ValueError, match="holds no photo"):
        index.query(query)


def test_parameters_are_checked_when_used():
    photo = make_features(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="code must have parts that divide the dimension, 8"):
        DelfIndex(method="ivf").fit([photo])
    for bad in ({"method": "x"}, {"vote": "x"}, {"k": 0}, {"leaf_size": 0}, {"n_jobs": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DelfIndex(**bad).fit([photo])
    for bad in ({"code": "5"}, {"n_lists": 0}, {"n_probe": 0}, {"rerank": -1}, {"leaf_size": 70}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DelfIndex(method="ivf", **{"code": "4x5", **bad}).fit([photo])


def test_estimator_contract(photos):
    index = DelfIndex(k=3, vote="distance")
    assert clone(index).get_params() == index.get_params()
    for call in (
        lambda i: i.query(photos[0]),
        lambda i: i.add(photos),
        lambda i: i.remove([0]),
        lambda i: i.save("x"),
        lambda i: i.memory_usage(),
        lambda i: len(i),
        lambda i: i.features_of(0),
    ):
        with pytest.raises(NotFittedError, match="call fit or load first"):
            call(DelfIndex())
    fitted = index.fit(photos)
    assert fitted is index
    assert index.fit(photos[:2]) is index and len(index) == 2  # a second fit starts afresh
    assert pickle.loads(pickle.dumps(DelfIndex(k=3))).k == 3
    with pytest.raises(TypeError, match="save it and load it instead"):
        pickle.dumps(index)


def test_photos_are_found_by_row_whatever_their_lengths():
    rng = np.random.default_rng(0)
    for counts in ([1], [0, 0, 5], [300] * 3, [0] * 700 + [2] + [0] * 700 + [900, 0, 1], [1] * 999):
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ids = np.arange(len(counts), dtype=np.int64) * 3
        first = _core.first_photo_of_buckets(offsets)
        rows = np.arange(offsets[-1], dtype=np.int64)[:, None]
        squared = rng.uniform(size=rows.shape).astype(np.float32)
        found = _core.group_by_photo(rows, squared, offsets, ids, first, len(ids), False)
        owner = np.repeat(ids, counts)
        by_row = np.empty(len(rows), np.int64)
        by_row[found[4]] = np.repeat(found[0], np.diff(found[1]))
        np.testing.assert_array_equal(by_row, owner)
        np.testing.assert_array_equal(found[3], found[4] - offsets[owner[found[4]] // 3])


def test_parameters_set_later_reach_the_trees(photos, query):
    index = DelfIndex().fit(photos)
    expected = index.query(query)
    index.set_params(n_jobs=2)
    assert same_matches(index.query(query), expected)
    assert {s.searcher.n_jobs for s in index._segments.view.segments if s.searcher is not None} == {
        2
    }
    with pytest.raises(ValueError, match="vote must be one of"):
        index.set_params(vote="x").query(query)


def test_the_image_table_may_change_while_it_is_read(photos, monkeypatch, tmp_path):
    monkeypatch.setattr("delfsearch.storage.catalog._PAGE_ROWS", 2)
    index = DelfIndex().fit(photos, metadata=[{"label": "a" if i % 3 else "b"} for i in range(7)])
    assert [record.id for record in index.images()] == list(range(7))
    index.save(tmp_path / "index")
    seen = []
    for record in index.images():
        seen.append(record.id)
        if record.id % 2:
            index.remove([record.id])
            index.save()
    assert seen == list(range(7)) and index.ids.tolist() == [0, 2, 4, 6]
    assert index.check() == []


def test_queries_from_several_threads_give_the_same_answers(photos, tmp_path):
    index = DelfIndex(k=9).fit(photos).save(tmp_path / "index")
    expected = [index.query(photo) for photo in photos] * 8
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(index.query, photos * 8))
        paths = list(pool.map(lambda i: index.image(i % 7).id, range(56)))
    assert all(same_matches(a, b) for a, b in zip(answers, expected))
    assert paths == list(range(7)) * 8


def test_the_largest_numbers_are_no_trouble(photos, query):
    index = DelfIndex(max_leaves=2**70, max_candidates=2**70).fit(photos)
    assert same_matches(index.query(query), DelfIndex(max_leaves=ALL).fit(photos).query(query))
    with pytest.raises(ValueError, match="k must be at most"):
        index.query(query, k=2**63)
    with pytest.raises(ValueError, match="n_jobs must be at most"):
        DelfIndex(n_jobs=2**40).fit(photos)
    last = DelfIndex().fit(photos[:1], ids=[2**63 - 1])
    assert last.query(photos[0]).image_ids.tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="ids must fit int64"):
        last.add(photos[1:2])
    assert len(last) == 1

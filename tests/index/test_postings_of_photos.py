"""postings="photos": lists that name photos, and the features found again among theirs."""

from __future__ import annotations

import numpy as np
import pytest
from search_helpers import make_collection, same_matches

from delfsearch import _core
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex

LISTS = {"method": "ivf", "code": "4x5", "n_lists": 3, "n_probe": 3, "postings": "photos"}


@pytest.fixture
def photos() -> list[LocalFeatures]:
    return make_collection()


def test_a_photo_and_its_feature_are_found(photos):
    by_photo, by_row = DelfIndex(**LISTS), DelfIndex(**{**LISTS, "postings": "features"})
    by_photo.fit(photos)
    by_row.fit(photos)
    for query in photos:
        if len(query) == 0:
            continue
        ours, theirs = by_photo.query(query, k=6), by_row.query(query, k=6)
        # The same codes answer, so the same photos as often, except where equal codes tie.
        assert len(ours.query_indices) == len(theirs.query_indices)
        stored = {i: by_photo.features_of(i) for i in ours.image_ids.tolist()}
        for c, image_id in enumerate(ours.image_ids.tolist()):
            mine = slice(ours.offsets[c], ours.offsets[c + 1])
            queries, rows = ours.query_indices[mine], ours.database_indices[mine]
            features = stored[image_id]
            squares = (
                (query.descriptors[:, None].astype(np.float64) - features.descriptors[None]) ** 2
            ).sum(2)
            for q in np.unique(queries):
                found = rows[queries == q]
                nearest = np.sort(squares[q])[: len(found)]
                assert len(set(found.tolist())) == len(found)
                np.testing.assert_allclose(np.sort(squares[q][found]), nearest, atol=1e-6)
            np.testing.assert_allclose(
                ours.squared_distances[mine], squares[queries, rows], rtol=1e-4, atol=1e-6
            )
            np.testing.assert_array_equal(ours.database_xy[mine], features.keypoints_xy[rows])


def test_segments_removals_and_the_disk_change_nothing(photos, tmp_path):
    more = make_collection(seed=5)
    parts = DelfIndex(**LISTS, merge_factor=0).fit(photos)
    parts.add(more[:3])
    parts.add(more[3:])
    gone = [1, len(photos) + 2]
    parts.remove(gone)
    expected = [parts.query(photo, k=9, exclude_ids=[0, 2]) for photo in photos]
    assert any(len(matches.image_ids) for matches in expected)
    assert not {*gone, 0, 2} & {i for m in expected for i in m.image_ids.tolist()}
    parts.save(tmp_path / "index")
    loaded = DelfIndex.load(tmp_path / "index")
    merged = DelfIndex.load(tmp_path / "index").merge()
    merged.save()
    assert loaded.postings == "photos" and merged.check() == []
    for one in (loaded, merged, DelfIndex.load(tmp_path / "index", verify=True)):
        for photo, answer in zip(photos, expected):
            assert same_matches(one.query(photo, k=9, exclude_ids=[0, 2]), answer)


def test_where_and_memory(photos):
    labels = [{"label": "ab"[i % 2]} for i in range(len(photos))]
    index = DelfIndex(**LISTS).fit(photos, metadata=labels)
    found = index.query(photos[0], k=5, where={"label": "b"})
    assert len(found.image_ids) and (found.image_ids % 2 == 1).all()
    whole = DelfIndex(**{**LISTS, "postings": "features"}).fit(photos)
    assert index.memory_usage()["ids"] < whole.memory_usage()["ids"]


def test_the_limit_holds_for_exact_distances(photos):
    index = DelfIndex(**LISTS).fit(photos)
    free = index.query(photos[0], k=20)
    limit = float(np.median(free.squared_distances))
    index.set_params(max_squared_distance=limit)
    found = index.query(photos[0], k=20)
    assert 0 < len(found.squared_distances) < len(free.squared_distances)
    assert (found.squared_distances <= limit).all()
    assert (np.diff(found.offsets) > 0).all() and found.offsets[-1] == len(found.query_xy)
    index.set_params(max_squared_distance=0.0)
    assert len(index.query(photos[0]).image_ids) == 0


def test_postings_are_settled_by_fit(photos):
    index = DelfIndex(**LISTS).fit(photos)
    expected = index.query(photos[0])
    index.set_params(postings="features")
    index.add(photos[:1])
    index.remove([len(photos)])
    assert same_matches(index.merge().query(photos[0]), expected)
    with pytest.raises(ValueError, match="postings must be"):
        DelfIndex(postings="rows").fit(photos)
    with pytest.raises(ValueError, match='rerank must be 0 with postings="photos"'):
        DelfIndex(**LISTS, rerank=5).fit(photos)


def test_rematch_refuses_pairs_out_of_range():
    lower, step = np.zeros(2, np.float32), np.ones(2, np.float32)
    codes, queries = np.zeros((3, 2), np.uint8), np.zeros((1, 2), np.float32)
    for query, begin, end in ((1, 0, 1), (-1, 0, 1), (0, 2, 2), (0, -1, 1), (0, 0, 4)):
        with pytest.raises(ValueError, match="out of range"):
            _core.rematch(
                lower,
                step,
                codes,
                queries,
                np.array([query], np.int32),
                np.array([begin]),
                np.array([end]),
                1,
            )

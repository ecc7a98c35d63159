"""DelfIndex on posting lists: what differs from a tree, and which of them it takes."""

from __future__ import annotations

import numpy as np
import pytest
from search_helpers import as_dict, brute_force, make_collection, make_features, same_matches

from delfsearch.features import LocalFeatures
from delfsearch.index import settings as settings_module
from delfsearch.index.delf_index import DelfIndex

LISTS = {"method": "ivf", "code": "4x5", "n_lists": 3, "n_probe": 2}


@pytest.fixture
def photos() -> list[LocalFeatures]:
    return make_collection()


def test_auto_settles_on_a_method_and_keeps_it(photos, tmp_path, monkeypatch, caplog):
    few = DelfIndex(code="4x5").fit(photos)
    assert few.method == "auto" and few.method_ == "kdtree"
    monkeypatch.setattr(settings_module, "AUTO_LISTS_FROM", 100)
    caplog.set_level("INFO", logger="delfsearch")
    many = DelfIndex(code="4x5", n_probe=99).fit(photos)
    assert many.method_ == "ivf" and 'method="ivf"' in caplog.text
    few.add(photos)
    assert few.method_ == "kdtree"
    assert "in trees" not in caplog.text  # it was too large before
    n_features = sum(len(photo) for photo in photos)
    monkeypatch.setattr(settings_module, "AUTO_LISTS_FROM", 3 * n_features)
    few.add(photos)
    assert f"{3 * n_features} descriptors in trees" in caplog.text
    caplog.clear()
    monkeypatch.setattr(settings_module, "AUTO_LISTS_FROM", n_features + 1)
    other = DelfIndex(code="5x5").fit(photos)  # does not divide the dimension
    other.add(photos)
    assert other.method_ == "kdtree" and "in trees" not in caplog.text
    many.save(tmp_path / "index")
    monkeypatch.undo()
    loaded = DelfIndex.load(tmp_path / "index")
    assert loaded.method == "auto" and loaded.method_ == "ivf"
    assert same_matches(loaded.query(photos[0]), many.query(photos[0]))
    loaded.add(photos[:1])
    assert loaded.merge().save().method_ == "ivf"
    assert DelfIndex(method="kdtree").fit(photos).method_ == "kdtree"


def test_auto_takes_photos_for_postings_where_there_are_many(photos, monkeypatch, caplog):
    caplog.set_level("INFO", logger="delfsearch")
    assert DelfIndex(**LISTS).fit(photos).postings_ == "features"
    assert 'method="ivf", postings="features"' in caplog.text
    monkeypatch.setattr(settings_module, "AUTO_PHOTOS_FROM", 100)
    many = DelfIndex(**LISTS).fit(photos)
    assert many.postings == "auto" and many.postings_ == "photos"
    assert all(segment.by_photo for segment in many._segments.view.segments)
    many.add(photos[:2])
    assert many.merge().postings_ == "photos"
    assert DelfIndex(**LISTS, rerank=9).fit(photos).postings_ == "features"


def test_eps_is_a_fifth_where_lists_name_photos_unless_told(photos, tmp_path):
    def eps_of(index):
        return [segment.searcher.eps for segment in index._segments.view.segments]

    assert eps_of(DelfIndex(**LISTS).fit(photos)) == [0.0]
    index = DelfIndex(**LISTS, postings="photos").fit(photos)
    assert eps_of(index) == [0.2]
    assert eps_of(DelfIndex.load(index.save(tmp_path / "index").path)) == [0.2]
    index.set_params(eps=0.0)
    index.query(photos[0])
    assert eps_of(index) == [0.0]
    with pytest.raises(ValueError, match="eps must be at least 0"):
        DelfIndex(**LISTS, eps=-1.0).fit(photos)
    with pytest.raises(TypeError, match="eps must be a number"):
        index.set_params(eps="much").query(photos[0])


def test_lists_that_were_emptied_learn_anew(photos, tmp_path):
    index = DelfIndex(**LISTS).fit(photos)
    index.remove(index.ids)
    index.add(make_collection(seed=7))
    expected = index.query(photos[0], k=9)
    index.save(tmp_path / "index")
    loaded = DelfIndex.load(tmp_path / "index", verify=True)
    assert same_matches(loaded.query(photos[0], k=9), expected)
    assert loaded.check() == [] and len(list((tmp_path / "index").glob("codes-*"))) == 1
    for image_id in loaded.ids:
        stored = loaded.features_of(image_id).descriptors
        np.testing.assert_array_equal(stored, index.features_of(image_id).descriptors)


def test_effort_may_be_changed_at_any_time(photos):
    index = DelfIndex(**{**LISTS, "n_probe": 1}).fit(photos)
    few = len(index.query(photos[0], k=200).squared_distances)
    index.set_params(n_probe=3)
    assert len(index.query(photos[0], k=200).squared_distances) > few
    index.set_params(rerank=1000)
    query = photos[4]
    exact = as_dict(index.query(query, k=5))
    expected = brute_force(index, query, 5)
    assert {i: {p[:2] for p in pairs} for i, pairs in exact.items()} == {
        i: set(pairs) for i, pairs in expected.items()
    }


def test_a_failed_fit_leaves_what_was_there(photos):
    index = DelfIndex(method="kdtree").fit(photos)
    index.set_params(method="ivf", code="3x5")
    with pytest.raises(ValueError, match=r'divide the dimension, 8; got .3x5.: take "[24]x5"'):
        index.fit(photos)
    index.set_params(code="4x5")
    assert index.method_ == "kdtree" and len(index.add(photos)) == len(photos)
    index.fit(photos)
    assert index.method_ == "ivf"


def test_parameters_are_checked_before_they_are_saved(photos, tmp_path):
    index = DelfIndex(**{**LISTS, "n_lists": np.int64(3), "k": np.int64(4)})
    index.set_params(random_state=np.random.default_rng(1)).fit(photos)
    loaded = DelfIndex.load(index.save(tmp_path / "index").path)
    assert (loaded.n_lists, loaded.k, loaded.random_state) == (3, 4, 0)
    index.set_params(n_probe=-1)
    with pytest.raises(ValueError, match="n_probe"):
        index.save()
    with pytest.raises(ValueError, match="code"):
        DelfIndex(code="10*5").fit(photos)


def test_an_emptied_index_takes_another_dimension_that_the_code_divides(photos):
    index = DelfIndex(**LISTS).fit(photos)
    index.remove(index.ids)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="divide the dimension, 6"):
        index.add([make_features(rng, 20, 6)])
    assert index.dimension_ == 8
    index.add([make_features(rng, 20, 12)])
    assert index.dimension_ == 12 and len(index.query(make_features(rng, 3, 12), k=2).image_ids)

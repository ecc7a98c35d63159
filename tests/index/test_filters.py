"""Queries with where=, against the unfiltered answer with everything else struck out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_helpers import as_dict, brute_force, make_collection, make_features, same_matches

from delfsearch import DelfIndex, LocalFeatures, Matches, QuantizedKDTree, Where
from delfsearch.index import selection as selection_module
from delfsearch.index.inverted_file import InvertedFile

ALL = 1000  # leaves, or neighbours: more than there are
METHODS = {
    "kdtree": {"method": "kdtree", "leaf_size": 4},
    "ivf": {"method": "ivf", "code": "4x5", "n_lists": 3, "n_probe": 3, "leaf_size": 64},
    "ivf, one list": {"method": "ivf", "code": "2x6", "n_lists": 1, "leaf_size": 64},
}
COUNTS = (30, 0, 41, 7, 55, 1, 24, 12, 130, 64)


def metadata_of(n: int) -> list[dict]:
    return [
        {
            "path": f"{i}.jpg",
            "label": "abc"[i % 3],
            "latitude": 8.0 * i,
            "longitude": 175 - 40.0 * i % 350,
        }
        | {"year": 2000 + i, "even": i % 2 == 0}
        for i in range(n)
    ]


@cache
def indexed(method: str) -> tuple[DelfIndex, LocalFeatures]:
    """An index of several segments, with removals and an update; never changed."""
    photos, metadata = make_collection(counts=COUNTS), metadata_of(len(COUNTS))
    index = DelfIndex(**METHODS[method], merge_factor=0, max_leaves=ALL).fit(
        photos[:4], metadata=metadata[:4], ids=[2, 3, 7, 11]
    )
    index.add(photos[4:7], metadata=metadata[4:7], ids=[20, 21, 22])
    index.add(photos[7:], metadata=metadata[7:])
    index.update([7], [make_features(np.random.default_rng(3), 33)])
    index.remove([2, 24])
    return index, make_features(np.random.default_rng(5), 20)


def pairs_of(matches: Matches) -> list[tuple]:
    """(query feature, squared distance, photo, its feature), in the order of a search."""
    return sorted(
        (pair[0], pair[-1], image_id, pair[1])
        for image_id, pairs in as_dict(matches).items()
        for pair in pairs
    )


def expected(index: DelfIndex, query: LocalFeatures, k: int, allowed) -> list[tuple]:
    """The k nearest of each query feature among all pairs with allowed photos."""
    everything = pairs_of(index.query(query, k=ALL))
    kept: list[tuple] = []
    for q in range(len(query)):
        kept += [pair for pair in everything if pair[0] == q and pair[2] in allowed][:k]
    return kept


@pytest.mark.parametrize("k", [1, 7, ALL])
@pytest.mark.parametrize("method", METHODS)
def test_each_query_feature_gets_its_nearest_allowed_neighbours(method, k):
    index, query = indexed(method)
    years = {record.id: record.metadata["year"] for record in index.images()}
    every = set(years)
    for where, allowed in [
        ({"ids": [3, 7, 22, 2, 24, 999]}, {3, 7, 22}),
        ({"ids": index.ids}, every),
        ({"label": "a"}, {r.id for r in index.images() if r.label == "a"}),
        (
            {"metadata": {"year": {"min": 2003, "max": 2007}}},
            {i for i in every if 3 <= years[i] - 2000 <= 7},
        ),
        (
            {"bounds": (0, 90, 40, -100)},
            {r.id for r in index.images() if r.latitude <= 40 and not -100 < r.longitude < 90},
        ),
        ({"metadata": {"path": ["4.jpg", "9.jpg"], "even": True}}, {20}),
    ]:
        found = pairs_of(index.query(query, k=k, where=where))
        assert found == expected(index, query, k, allowed) and found
        assert {pair[2] for pair in found} <= allowed


@pytest.mark.parametrize("method", METHODS)
def test_where_and_exclude_ids_both_hold(method):
    index, query = indexed(method)
    for allowed in [{3, 20, 22, 25}, {20, 22}, {22}]:
        for excluded in ([20], [22, 3, 999], [22], [7, 2]):
            found = index.query(query, k=9, where={"ids": allowed}, exclude_ids=excluded)
            assert pairs_of(found) == expected(index, query, 9, allowed - set(excluded))


@pytest.mark.parametrize("method", ["kdtree", "ivf"])
def test_against_brute_force_over_the_descriptors(method):
    index, query = indexed(method)
    if method == "ivf":
        photos = make_collection(counts=COUNTS)
        index = DelfIndex(**METHODS["ivf"], rerank=ALL, merge_factor=0).fit(photos[:5])
        index.add(photos[5:])
    allowed = [int(i) for i in index.ids[::2]]
    excluded = allowed[:1]
    found = as_dict(index.query(query, k=11, where={"ids": allowed}, exclude_ids=excluded))
    others = set(index.ids.tolist()) - set(allowed) | set(excluded)
    pairs = brute_force(index, query, 11, excluded=others)
    assert {i: {pair[:2] for pair in found[i]} for i in found} == {i: set(pairs[i]) for i in pairs}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(METHODS)),
    st.sets(st.integers(0, 30), max_size=12),
    st.sets(st.integers(0, 30), max_size=4),
    st.lists(st.sampled_from("abcd"), max_size=3) | st.none(),
    st.integers(1, 40),
)
def test_any_filter(method, ids, excluded, labels, k):
    index, query = indexed(method)
    where = {"ids": ids, "label": labels}
    allowed = {
        r.id
        for r in index.images()
        if r.id in ids - excluded and (labels is None or r.label in labels)
    }
    found = pairs_of(index.query(query, k=k, where=where, exclude_ids=excluded))
    assert found == expected(index, query, k, allowed)


@pytest.mark.parametrize("method", METHODS)
def test_filters_after_saving_loading_merging_and_changing(method, tmp_path):
    photos = make_collection(counts=COUNTS)
    query = make_features(np.random.default_rng(6), 15)
    index = DelfIndex(**METHODS[method], merge_factor=0, max_leaves=ALL)
    index.fit(photos[:5], metadata=metadata_of(5)).add(photos[5:], metadata=metadata_of(10)[5:])
    where = Where(label=["a", "b"])
    first = index.query(query, k=9, where=where)

    def check(index: DelfIndex) -> Matches:
        allowed = {record.id for record in index.images() if record.label in ("a", "b")}
        found = index.query(query, k=9, where=where)
        assert pairs_of(found) == expected(index, query, 9, allowed)
        return found

    index.save(tmp_path / "index")
    assert same_matches(check(index), first)
    loaded = DelfIndex.load(tmp_path / "index")
    assert same_matches(check(loaded), first)
    loaded.remove([4])
    assert 4 not in check(loaded).image_ids
    loaded.update([3], [photos[3]], metadata=[{"label": "c"}])
    assert 3 not in check(loaded).image_ids
    loaded.add(photos[2:3], metadata=[{"label": "b"}])
    assert 10 in check(loaded).image_ids
    before = check(loaded)
    if method == "kdtree":  # lists are built alike of the same codes, ties included
        assert same_matches(check(loaded.merge()), before)
    check(loaded.merge().save())
    again = DelfIndex.load(tmp_path / "index", verify=True)
    assert set(check(again).image_ids) == set(before.image_ids)


@pytest.mark.parametrize("method", METHODS)
def test_what_nothing_satisfies_matches_nothing(method):
    index, query = indexed(method)
    empty = LocalFeatures.empty(8)
    for where in (
        {"ids": []},
        {"ids": [2, 24, 999]},  # removed, or never there
        {"label": "no such"},
        {"label": []},
        {"bounds": (-90, 0, -89, 1)},
        {"metadata": {"no such": 1}},
        {"ids": [3], "label": "a", "metadata": {"year": 1900}},
    ):
        found = index.query(query, where=where)
        assert isinstance(found, Matches) and len(found) == 0
        assert found.offsets.tolist() == [0] and found.database_xy.shape == (0, 2)
    assert [len(m) for m in index.query_many([query, empty], where={"ids": [7]})] == [1, 0]
    blank = DelfIndex(**METHODS[method]).fit([empty, empty])
    assert len(blank.query(query, where={"ids": [0, 1]})) == 0


def test_nothing_given_is_no_filter_and_an_empty_index_says_so():
    index, query = indexed("kdtree")
    for where in (None, {}, Where()):
        assert same_matches(index.query(query, where=where), index.query(query))
    gone = DelfIndex().fit(make_collection())
    gone.remove(gone.ids)
    with pytest.raises(ValueError, match="holds no photo"):
        gone.query(query, where={"ids": [1]})
    with pytest.raises(ValueError, match="no keys but ids"):
        index.query(query, where={"id": [1]})
    with pytest.raises(TypeError, match="where must be a Where"):
        index.query_many([query], where=[{"ids": [1]}])


@pytest.mark.parametrize("method", METHODS)
def test_the_condition_is_evaluated_once_until_the_index_changes(method, monkeypatch):
    photos = make_collection()
    index = DelfIndex(**METHODS[method], merge_factor=0).fit(photos, metadata=metadata_of(7))
    asked = []
    catalog = index._store.catalog
    evaluate = catalog.image_ids
    monkeypatch.setattr(catalog, "image_ids", lambda *a: asked.append(a) or evaluate(*a))
    assert "filters" not in index.memory_usage()
    index.query_many(photos, where={"label": "a"})
    index.query(photos[0], where=Where(label=["a"]))
    assert len(asked) == 1
    usage = index.memory_usage()
    assert usage["filters"] > 7 and usage["filters"] < usage["in_memory"] < usage["total"]
    index.query(photos[0], where={"label": "b"})
    assert len(asked) == 2
    index.remove([6])
    index.query(photos[0], where={"label": "a"})
    assert len(asked) == 3
    index.add(photos[:1])
    assert "filters" not in index.memory_usage()
    index.query(photos[0], where={"label": "a"})
    assert len(asked) == 4


def test_only_so_much_is_kept(monkeypatch):
    photos = make_collection()
    index = DelfIndex(leaf_size=4).fit(photos)
    answers = [index.query(photos[0], where={"ids": [i, 6]}) for i in range(6)]
    one = index.memory_usage()["filters"] / 6
    monkeypatch.setattr(selection_module, "_KEPT", 3)
    index.query(photos[0], where={"ids": [4]})
    assert index.memory_usage()["filters"] == pytest.approx(3 * one)
    monkeypatch.setattr(selection_module, "_KEPT_BYTES", 1)
    index.query(photos[0], where={"ids": [5]})
    assert index.memory_usage()["filters"] == pytest.approx(one)
    for i, answer in enumerate(answers):
        assert same_matches(index.query(photos[0], where={"ids": [i, 6]}), answer)


def test_filters_from_several_threads(tmp_path):
    index, query = indexed("ivf")
    wheres = [{"ids": [i, j]} for i in (3, 7, 20) for j in (22, 23, 25)] * 4
    alone = [index.query(query, where=where) for where in wheres]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda where: index.query(query, where=where), wheres))
    assert all(map(same_matches, alone, together))


def clusters(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(9, 8)) * 4
    return (centres[rng.integers(0, 9, n)] + rng.normal(size=(n, 8))).astype(np.float32)


SEARCHERS = {
    "tree": lambda: QuantizedKDTree(leaf_size=16),
    "tree of odd leaves": lambda: QuantizedKDTree(leaf_size=21),
    "lists": lambda: InvertedFile(n_lists=3, code="4x4", leaf_size=64),
    "lists without leaves": lambda: InvertedFile(n_lists=3, code="4x6", leaf_size=0),
}


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", SEARCHERS)
def test_searchers_find_only_what_is_allowed_and_all_of_it(name, share):
    X, queries = clusters(3000), clusters(40, seed=1)
    searcher = SEARCHERS[name]().fit(X)
    effort = {"max_leaves": ALL} | ({"n_probe": 3} if "lists" in name else {})
    rng = np.random.default_rng(2)
    mask = np.zeros(3000, bool)
    mask[rng.permutation(3000)[: int(share * 3000)]] = True
    gone = np.flatnonzero(mask)[::5] if mask.sum() > 5 else []
    squared, ids = searcher.query(queries, k=3000, **effort)
    for removed in ([], gone):
        searcher.remove(removed)
        mask[removed] = False
        for k in (1, 10, 200):
            found = searcher.query(queries, k=k, **effort, allowed=searcher.prepare(mask))
            for q in range(len(queries)):
                kept = mask[ids[q]]
                n = min(k, int(mask.sum()))
                np.testing.assert_array_equal(found[1][q, :n], ids[q][kept][:n])
                np.testing.assert_array_equal(found[0][q, :n], squared[q][kept][:n])
                assert (found[1][q, n:] == -1).all() and np.isinf(found[0][q, n:]).all()


@pytest.mark.parametrize("name", SEARCHERS)
def test_leaves_without_anything_allowed_take_no_place_among_max_leaves(name):
    X, queries = clusters(3000), clusters(40, seed=1)
    searcher = SEARCHERS[name]().fit(X)
    effort = {"max_leaves": 1} | ({"n_probe": 3} if "lists" in name else {})
    mask = np.zeros(3000, bool)
    mask[[5, 700, 2222]] = True
    _, ids = searcher.query(queries, k=3, **effort, allowed=searcher.prepare(mask))
    assert (ids[:, 0] >= 0).all() and set(ids.ravel()) <= {-1, 5, 700, 2222}
    _, ids = searcher.query(
        queries, k=3, **{**effort, "max_leaves": 3}, allowed=searcher.prepare(mask)
    )
    assert (np.sort(ids, axis=1) == [5, 700, 2222]).all()
    nothing = searcher.prepare(np.zeros(3000, bool))
    squared, ids = searcher.query(queries, k=3, **effort, allowed=nothing)
    assert (ids == -1).all() and np.isinf(squared).all()
    everything = searcher.prepare(np.ones(3000, bool))
    for found, plain in zip(
        searcher.query(queries, k=9, **effort, allowed=everything),
        searcher.query(queries, k=9, **effort),
    ):
        np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_mask_of_another_form_is_refused(name):
    searcher = SEARCHERS[name]().fit(clusters(100))
    for mask in (np.ones(99, bool), np.ones(100, np.uint8), np.ones((100, 1), bool), None, [1, 2]):
        with pytest.raises(ValueError, match=r"mask must be \(100,\) bool"):
            searcher.prepare(mask)


def test_what_was_prepared_for_other_lists_is_refused():
    one, other = (InvertedFile(n_lists=2, code="4x4").fit(clusters(n)) for n in (100, 1000))
    allowed = one.prepare(np.ones(100, bool))
    with pytest.raises(ValueError, match="allowed must have a bit for each place"):
        other.query(clusters(3), k=2, allowed=allowed)

"""The rules that every evaluation set keeps, and where its photos lie."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import Dataset, Query
from delfsearch.evaluation.datasets.missing import settle_missing
from delfsearch.evaluation.datasets.photo_paths import PhotoPaths, absent_files

ROOT = Path("/somewhere")


def dataset(**changes) -> Dataset:
    database = ("a", "b", "c")
    found = Dataset(
        name="tiny",
        root=ROOT,
        database=database,
        queries=(
            Query("q1", ROOT / "q1.jpg", positives=frozenset("a"), junk=frozenset("c")),
            Query("q2", ROOT / "q2.jpg", positives=frozenset("ab")),
        ),
        distractor_queries=(Query("d1", ROOT / "d1.jpg"),),
        paths={photo: ROOT / f"{photo}.jpg" for photo in database},
        labels={"a": "tower"},
        locations={"a": (51.75, -1.25)},
        headline=("q2",),
    )
    return dataclasses.replace(found, **changes)


def with_query(**values) -> Dataset:
    query = {"id": "q3", "path": ROOT / "q3.jpg", "positives": frozenset("a"), **values}
    return dataset(queries=(*dataset().queries, Query(**query)))


def test_a_set_that_keeps_the_rules_passes():
    found = dataset()
    assert found.check() is found
    assert [q.id for q in found.all_queries] == ["q1", "q2", "d1"]
    assert [q.id for q in found.headline_queries] == ["q2"]
    assert dataset(headline=()).headline_queries == found.queries
    assert "q1" not in repr(found)


def test_a_querys_photo_is_its_id_unless_given():
    assert Query("q", ROOT).photo == "q"
    assert Query("q", ROOT, photo="p").photo == "p"
    assert dataclasses.replace(Query("q", ROOT, photo="p"), scene="s").photo == "p"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (dataset(database=("a", "b", "c", "a")), r"tiny: the database must hold .* once.* 'a'"),
        (dataset(database=(), labels={}, locations={}, queries=()), "at least one photo"),
        (dataset(paths={"a": ROOT}), r"paths must have .* absent: 'b', 'c'"),
        (dataset(labels={"z": "x"}), r"labels must be of database photos; 'z'"),
        (dataset(locations={"z": (0, 0)}), r"locations must be of database photos; 'z'"),
        (dataset(locations={"a": (90.5, 0)}), r"photo 'a' must have a latitude .* got 90\.5"),
        (dataset(locations={"a": (0, -181)}), r"photo 'a' must have a longitude .* got -181"),
        (dataset(locations={"a": (float("nan"), 0)}), "got nan"),
        (dataset(headline=("z",)), "headline must name queries; 'z'"),
        (dataset(distractor_queries=(Query("q1", ROOT),)), r"also be a distractor query; 'q1'"),
        (dataset(distractor_queries=(Query("x", ROOT),) * 2), "different ids; more than once: 'x'"),
        (
            dataset(distractor_queries=(Query("x", ROOT, positives=frozenset("a")),)),
            "distractor queries must have no positives; 'x'",
        ),
        (with_query(id="q1"), "queries must have different ids"),
        (with_query(positives=frozenset()), r"must have a positive; 'q3' have none"),
        (with_query(positives=frozenset("az")), r"positives of query 'q3' .* not in it: 'z'"),
        (with_query(junk=frozenset("z")), r"junk of query 'q3' .* not in it: 'z'"),
        (with_query(easy=frozenset("z")), r"easy of query 'q3' .* not in it: 'z'"),
        (with_query(junk=frozenset("a")), r"both in positives and junk; 'a'"),
        (with_query(easy=frozenset("a"), hard=frozenset("a")), "both in easy and hard"),
        (with_query(box=(5, 0, 5, 9)), r"query 'q3': box must have x0 < x1"),
        (with_query(box=(0, 0, 1, float("inf"))), "query 'q3': box must be four finite"),
        (with_query(box=(0, 0, 1)), "query 'q3': box must be four finite"),
        (with_query(location=(0, 200)), r"query 'q3' must have a longitude"),
        (with_query(photo="b"), r"own photo 'b' of query 'q3'"),
        (dataset(distractor_queries=(Query("b", ROOT),)), r"own photo 'b' of query 'b'"),
        (dataset(radius_km=25.0), r"must have a location.*'q1', 'q2' have none"),
        (dataset(radius_km=0.0), "radius_km must be positive"),
        (dataset(radius_km=float("nan")), "radius_km must be positive"),
    ],
)
def test_a_set_that_breaks_a_rule_is_refused(broken, message):
    with pytest.raises(DatasetError, match=message):
        broken.check()


def test_own_photos_stay_where_the_set_says_so():
    own = with_query(photo="a", positives=frozenset("ab"))
    with pytest.raises(DatasetError, match="own photo"):
        own.check()
    dataclasses.replace(own, exclude_self=False).check()
    with_query(photo="a", positives=frozenset("b"), junk=frozenset("a")).check()


def test_long_lists_are_cut():
    many = frozenset(f"z{i}" for i in range(9))
    with pytest.raises(DatasetError, match=r"'z0', .*'z4', \.\.\. \(9 in all\)"):
        with_query(positives=many).check()


def on_disk(root: Path, **changes) -> Dataset:
    for name in ("a", "b", "c", "q1", "q2", "d1"):
        (root / f"{name}.jpg").touch()
    moved = dataset(
        root=root,
        paths=PhotoPaths(root, {photo: f"{photo}.jpg" for photo in "abc"}),
        queries=tuple(dataclasses.replace(q, path=root / f"{q.id}.jpg") for q in dataset().queries),
        distractor_queries=(Query("d1", root / "d1.jpg"),),
    )
    return dataclasses.replace(moved, **changes)


def test_absent_photos_are_found(tmp_path):
    assert on_disk(tmp_path).absent_photos() == ()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "d1.jpg").unlink()
    (tmp_path / "q1.jpg").unlink()
    (tmp_path / "q1.jpg").mkdir()
    found = dataclasses.replace(
        dataset(root=tmp_path),
        paths=PhotoPaths(tmp_path, {p: f"{p}.jpg" for p in "ab"}),
        queries=tuple(
            dataclasses.replace(q, path=tmp_path / f"{q.id}.jpg") for q in dataset().queries
        ),
        distractor_queries=(Query("d1", tmp_path / "d1.jpg"),),
    )
    assert found.absent_photos() == ("c", "b", "d1", "q1")


def test_missing_photos_are_refused_or_dropped(tmp_path):
    complete = on_disk(tmp_path)
    assert settle_missing(complete, "error") == complete
    assert settle_missing(complete, "drop") == complete
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"tiny: 1 photo.* 'a'; or do without .*'drop'"):
        settle_missing(complete, "error")
    kept = settle_missing(complete, "drop")
    assert kept.database == ("b", "c")
    assert [(q.id, q.positives) for q in kept.queries] == [("q2", frozenset("b"))]
    assert kept.labels == {} and kept.locations == {} and kept.headline == ("q2",)
    assert kept.notes == (
        "left out 1 absent photo(s): 'a'",
        "left out 1 query(ies) for lack of photos: 'q1'",
    )
    with pytest.raises(ValueError, match="missing must be one of 'error', 'drop'; got 'skip'"):
        settle_missing(complete, "skip")


def test_queries_whose_photo_is_missing_are_dropped(tmp_path):
    complete = on_disk(tmp_path)
    (tmp_path / "q2.jpg").unlink()
    (tmp_path / "d1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"2 photo.* 'd1', 'q2'"):
        settle_missing(complete, "error")
    kept = settle_missing(complete, "drop")
    assert [q.id for q in kept.all_queries] == ["q1"] and kept.headline == ()


names = st.text("abcé/", min_size=1, max_size=4).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and "//" not in name
)


@given(st.dictionaries(names, names), st.dictionaries(names, names))
def test_paths_are_a_mapping_like_a_dict(first, second):
    slow = {photo: Path("/two") / name for photo, name in second.items()}
    slow |= {photo: Path("/one") / name for photo, name in first.items()}
    joined = PhotoPaths("/one", first).joined(PhotoPaths("/two", second))
    assert dict(joined) == slow and len(joined) == len(slow)
    assert all(photo in joined for photo in slow) and "no such" not in joined
    assert dict(PhotoPaths.of(slow)) == slow
    assert PhotoPaths.of(joined) is joined
    with pytest.raises(KeyError):
        joined["no such"]


@pytest.mark.parametrize("count", [1, 3, 30])
def test_absent_files_agree_with_asking_for_each(tmp_path, count):
    files = [str(tmp_path / f"{i % 3}" / f"{i}.jpg") for i in range(count)]
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    for file in files[::2]:
        if Path(file).parent.is_dir():
            Path(file).touch()
    (tmp_path / "1" / "31.jpg").mkdir()
    files.append(str(tmp_path / "1" / "31.jpg"))
    assert absent_files(files) == {file for file in files if not os.path.isfile(file)}
    assert absent_files([]) == set()

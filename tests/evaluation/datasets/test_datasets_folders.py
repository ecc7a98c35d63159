"""Sets that are folders of photos: Holidays, mobile visual search, labelled folders, and ours."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from evaluation.datasets.trees import write_csv, write_photos
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import (
    from_photo_folder,
    read_holidays,
    read_image_folder,
    read_library_folder,
    read_smvs,
)
from delfsearch.evaluation.folder import PhotoFolder

# Holidays


def test_holidays(tmp_path):
    write_photos(tmp_path / "jpg", ["100000.jpg", "100001.jpg", "100100.jpg", "100102.jpg"])
    write_photos(tmp_path / "jpg", ["readme.jpg", "123.jpg", "sub/100200.jpg"])
    dataset = read_holidays(tmp_path)
    assert dataset.database == ("100000.jpg", "100001.jpg", "100100.jpg", "100102.jpg")
    first, second = dataset.queries
    assert first.id == first.photo == "100000.jpg" and first.scene == "1000"
    assert first.path == tmp_path / "jpg" / "100000.jpg"
    assert first.positives == {"100001.jpg"} and first.junk == {"100000.jpg"}
    assert second.positives == {"100102.jpg"}
    assert dataset.exclude_self and dataset.labels["100102.jpg"] == "1001"
    assert "1491 photos and 500 queries in the published set, 4 and 2 here" in dataset.notes
    assert read_holidays(tmp_path / "jpg").database == dataset.database


def test_holidays_that_are_not(tmp_path):
    with pytest.raises(DatasetError, match=r"no photo named as 100000\.jpg .*INRIA Holidays"):
        read_holidays(tmp_path)
    write_photos(tmp_path, ["100000.jpg", "100001.jpg", "100101.jpg"])
    with pytest.raises(DatasetError, match=r"must have its query.* '100101\.jpg' lack it"):
        read_holidays(tmp_path)
    write_photos(tmp_path, ["100100.jpg", "100200.jpg"])
    with pytest.raises(DatasetError, match=r"must have a positive; '100200\.jpg'"):
        read_holidays(tmp_path)


@given(st.dictionaries(st.integers(1000, 9999), st.integers(2, 5), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_holidays_written_are_read(groups):
    with tempfile.TemporaryDirectory() as folder:
        names = {g: [f"{g}{i:02d}.jpg" for i in range(size)] for g, size in groups.items()}
        write_photos(Path(folder) / "jpg", [name for group in names.values() for name in group])
        dataset = read_holidays(folder)
    assert {q.id: q.positives for q in dataset.queries} == {
        group[0]: set(group[1:]) for group in names.values()
    }
    assert list(dataset.database) == sorted(name for group in names.values() for name in group)


# Stanford Mobile Visual Search

SMVS = [
    "book_covers/Reference/001.jpg",
    "book_covers/Reference/002.jpg",
    "book_covers/Droid/001.jpg",
    "book_covers/Droid/003.jpg",
    "book_covers/5800/2.jpg",
    "landmarks/Reference/001.jpg",
    "landmarks/Query/001.jpg",
]


def test_smvs(tmp_path):
    write_photos(tmp_path / "mvs_images", [*SMVS, "notes/x.jpg"])
    dataset = read_smvs(tmp_path)
    assert dataset == read_smvs(tmp_path, categories=["landmarks", "book_covers"])
    assert dataset.database == (SMVS[0], SMVS[1], SMVS[5])
    assert {q.id: q.positives for q in dataset.queries} == {
        "book_covers/5800/2.jpg": {SMVS[1]},
        "book_covers/Droid/001.jpg": {SMVS[0]},
        "landmarks/Query/001.jpg": {SMVS[5]},
    }
    # Nothing answers a photo whose number has no reference.
    assert [q.id for q in dataset.distractor_queries] == ["book_covers/Droid/003.jpg"]
    first = dataset.queries[0]
    assert (first.subset, first.kind, first.scene) == ("book_covers", "5800", "book_covers/2")
    assert first.path == tmp_path / "mvs_images" / "book_covers" / "5800" / "2.jpg"
    assert dataset.labels[SMVS[5]] == "landmarks/1" and dataset.absent_photos() == ()


def test_some_of_smvs(tmp_path):
    write_photos(tmp_path, SMVS)
    books = read_smvs(tmp_path, categories=["book_covers"], devices=["Droid"])
    assert [q.id for q in books.all_queries] == [SMVS[2], SMVS[3]]
    with pytest.raises(DatasetError, match="has no 'cd_covers' with a folder Reference"):
        read_smvs(tmp_path, categories=["cd_covers"])
    with pytest.raises(DatasetError, match="no photo of a device"):
        read_smvs(tmp_path, devices=["Palm"])


def test_smvs_that_is_not(tmp_path):
    with pytest.raises(DatasetError, match=r"no category .*; get the Stanford Mobile"):
        read_smvs(tmp_path)
    write_photos(tmp_path, [*SMVS, "landmarks/no reference set/001.jpg"])
    with pytest.raises(DatasetError, match=r"'no reference set' are not known. Name those"):
        read_smvs(tmp_path)
    assert len(read_smvs(tmp_path, devices=["Query"]).queries) == 1
    write_photos(tmp_path, ["landmarks/Reference/1.jpg"])
    with pytest.raises(DatasetError, match=r"different numbers; .*001\.jpg' and .*/1\.jpg'"):
        read_smvs(tmp_path, devices=["Query"])
    (tmp_path / "print" / "Reference").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no photo in .*print"):
        read_smvs(tmp_path, categories=["print"])


# Labelled subfolders

FOLDER = ["tower/1.jpg", "tower/2.png", "tower/sub/3.jpg", "cat/1.jpg", "loose.jpg", "tower/x.txt"]


def test_subfolders_are_labels(tmp_path):
    write_photos(tmp_path, FOLDER)
    write_photos(tmp_path, [".hidden/1.jpg", "tower/.2.jpg"])
    dataset = read_image_folder(tmp_path)
    assert dataset.database == ("cat/1.jpg", "loose.jpg", *FOLDER[:3])
    assert {q.id: q.positives for q in dataset.queries} == {
        photo: set(FOLDER[:3]) - {photo} for photo in FOLDER[:3]
    }
    assert all(q.junk == {q.id} for q in dataset.all_queries)
    assert [q.id for q in dataset.distractor_queries] == ["cat/1.jpg"]
    assert dataset.labels == {**dict.fromkeys(FOLDER[:3], "tower"), "cat/1.jpg": "cat"}


def test_the_first_of_each_subfolder_as_query(tmp_path):
    write_photos(tmp_path, FOLDER)
    dataset = read_image_folder(tmp_path, queries="first")
    assert dataset.database == ("loose.jpg", "tower/2.png", "tower/sub/3.jpg")
    (query,) = dataset.queries
    assert query.id == "tower/1.jpg" and query.positives == {"tower/2.png", "tower/sub/3.jpg"}
    assert [q.id for q in dataset.distractor_queries] == ["cat/1.jpg"]
    with pytest.raises(ValueError, match="queries must be one of 'all', 'first'"):
        read_image_folder(tmp_path, queries="some")


def test_a_folder_without_pairs_is_refused(tmp_path):
    write_photos(tmp_path, ["a/1.jpg", "b/1.jpg", "2.jpg"])
    with pytest.raises(DatasetError, match=r"it has 3 photo\(s\) in 2 subfolder\(s\)"):
        read_image_folder(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        read_image_folder(tmp_path / "none")


def test_links_to_folders_are_followed_once(tmp_path):
    write_photos(tmp_path / "far", ["1.jpg", "2.jpg"])
    (tmp_path / "near").mkdir()
    try:
        (tmp_path / "near" / "tower").symlink_to(tmp_path / "far")
        (tmp_path / "far" / "loop").symlink_to(tmp_path / "far")
    except OSError:  # Windows lets only some users make links
        return
    assert read_image_folder(tmp_path / "near").database == ("tower/1.jpg", "tower/2.jpg")


# The library's own format

TABLE = [
    ("q/1.jpg", "query", "tower", "pair", "landmarks"),
    ("q/2.jpg", "query", "tower", "pair", "landmarks"),
    ("db/1.jpg", "db", "tower", "pair", "landmarks"),
    ("d/1.jpg", "distractor", "", "", "far"),
    ("n.jpg", "query_nomatch", "cat", "nomatch_query", "objects"),
]


def write_library(root: Path, **changes) -> Path:
    truth = {
        "queries": {
            "q/1.jpg": {
                "scene": "tower",
                "kind": "pair",
                "subset": "landmarks",
                "positives": ["db/1.jpg"],
                "junk": ["q/2.jpg", "d/1.jpg"],
            },
            "n.jpg": {"kind": "nomatch_query", "positives": []},
        },
        "headline_queries": ["q/1.jpg"],
        "no_match_queries": ["n.jpg"],
        "distractor_queries": ["d/1.jpg"],
        "database": ["db/1.jpg", "d/1.jpg"],
        **changes,
    }
    write_photos(root, [row[0] for row in TABLE])
    write_csv(root / "photos.csv", ("path", "role", "scene", "kind", "subset"), TABLE)
    (root / "ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return root


def test_the_librarys_format(tmp_path):
    dataset = read_library_folder(write_library(tmp_path / "mine"))
    assert dataset.name == "mine" and dataset.database == ("db/1.jpg", "d/1.jpg")
    (query,) = dataset.queries
    assert query.positives == {"db/1.jpg"} and query.path == tmp_path / "mine" / "q" / "1.jpg"
    assert query.junk == {"d/1.jpg"}  # the other is not in the database
    assert (query.scene, query.kind, query.subset) == ("tower", "pair", "landmarks")
    nomatch, distractor = dataset.distractor_queries
    assert nomatch.id == "n.jpg" and nomatch.kind == "nomatch_query" and not nomatch.junk
    assert distractor.id == "d/1.jpg" and distractor.kind == "distractor"
    assert distractor.junk == {"d/1.jpg"} and distractor.subset == "far"
    assert dataset.headline == ("q/1.jpg",) and dataset.labels == {"db/1.jpg": "tower"}
    again = from_photo_folder(PhotoFolder.read(tmp_path / "mine"), name="mine")
    assert again == dataset
    assert from_photo_folder(PhotoFolder.read(tmp_path / "mine"), name="x").name == "x"


def test_a_query_that_is_in_the_database(tmp_path):
    root = write_library(
        tmp_path,
        queries={"db/1.jpg": {"positives": ["db/1.jpg", "d/1.jpg"]}},
        headline_queries=[],
        no_match_queries=[],
        distractor_queries=[],
    )
    (query,) = read_library_folder(root).queries
    assert query.positives == {"d/1.jpg"} and query.junk == {"db/1.jpg"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distractor_queries": ["n.jpg"]}, r"different ids; more than once: 'n\.jpg'"),
        ({"distractor_queries": ["q/1.jpg"]}, r"also be a distractor query; 'q/1\.jpg'"),
        ({"database": ["d/1.jpg"]}, r"not in the database: 'db/1\.jpg'"),
        ({"database": []}, "not in the database"),
        ({"headline_queries": ["d/1.jpg"]}, "must be one of the queries"),
    ],
)
def test_a_library_folder_that_breaks_the_rules(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        read_library_folder(write_library(tmp_path, **changes))


def test_absent_photos_of_a_library_folder(tmp_path):
    with pytest.raises(DatasetError, match=r"no photos\.csv"):
        read_library_folder(tmp_path)
    root = write_library(tmp_path)
    (root / "q" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 photo.*'q/1\.jpg'"):
        read_library_folder(root)
    assert len(read_library_folder(root, check_files=False).queries) == 1
    assert read_library_folder(root, missing="drop").queries == ()


def test_the_real_photographs_if_they_are_here():
    default = Path(__file__).parents[4] / "shared" / "photos"
    root = Path(os.environ.get("DELFSEARCH_PHOTOS") or default)
    if not PhotoFolder.is_one(root):
        return
    dataset = read_library_folder(root)
    folder = PhotoFolder.read(root)
    assert len(dataset.all_queries) == len(folder.queries) + len(folder.distractor_queries)
    assert {q.id for q in dataset.queries} == {p for p, t in folder.queries.items() if t.positives}
    assert dataset.absent_photos() == ()

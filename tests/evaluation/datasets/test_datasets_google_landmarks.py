"""Google Landmarks v2: the tables of the set, retrieval and recognition."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation.datasets.trees import landmarks_path, write_csv, write_photos

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import read_google_landmarks

TRAIN = {"a0": "7", "a1": "7", "a2": "8", "a3": "9"}
INDEX = ("b0", "b1", "b2")


def full(short: str) -> str:
    return f"{short}{'0' * 14}"


def write(root: Path, tables: str = "metadata") -> Path:
    write_photos(root, (landmarks_path("train", full(p)) for p in TRAIN))
    write_photos(root, (landmarks_path("index", full(p)) for p in INDEX))
    write_photos(root, (landmarks_path("test", full(f"c{i}")) for i in range(5)))
    folder = root / tables
    write_csv(
        folder / "train.csv",
        ("id", "url", "landmark_id"),
        [(full(p), "somewhere", landmark) for p, landmark in TRAIN.items()],
    )
    write_csv(
        folder / "train_clean.csv",
        ("landmark_id", "images"),
        [("7", f"{full('a0')} {full('a1')}"), ("8", full("a2"))],
    )
    write_csv(folder / "index.csv", ("id",), [(full(p),) for p in INDEX])
    write_csv(
        folder / "recognition_solution_v2.1.csv",
        ("id", "landmarks", "Usage"),
        [
            (full("c0"), "7 8", "Private"),
            (full("c1"), "", "Private"),
            (full("c2"), "9", "Private"),
            (full("c3"), "8", "Public"),
            (full("c4"), "7", "Ignored"),
        ],
    )
    write_csv(
        folder / "retrieval_solution_v2.1.csv",
        ("id", "images", "Usage"),
        [
            (full("c0"), f"{full('b0')} {full('b2')}", "Private"),
            (full("c1"), "None", "Ignored"),
            (full("c3"), full("b1"), "Public"),
        ],
    )
    return root


@pytest.fixture(params=["metadata", "", "test"])
def root(tmp_path, request) -> Path:
    return write(tmp_path, request.param)


def short(ids) -> list[str]:
    return sorted(photo[:2] for photo in ids)


def test_retrieval(root):
    dataset = read_google_landmarks(root)
    assert dataset.name == "gldv2-retrieval" and short(dataset.database) == ["b0", "b1", "b2"]
    assert dataset.paths[full("b0")] == root / "index" / "b" / "0" / "0" / f"{full('b0')}.jpg"
    (query,) = dataset.queries
    assert query.id == full("c0") and short(query.positives) == ["b0", "b2"]
    assert query.path == root / "test" / "c" / "0" / "0" / f"{full('c0')}.jpg"
    assert dataset.distractor_queries == () and dataset.labels == {}
    public = read_google_landmarks(root, split="public")
    assert [(q.id, short(q.positives)) for q in public.queries] == [(full("c3"), ["b1"])]
    assert len(read_google_landmarks(root, split="all").queries) == 2


def test_recognition(root):
    dataset = read_google_landmarks(root, task="recognition")
    assert short(dataset.database) == ["a0", "a1", "a2", "a3"]
    assert dataset.labels == {full(p): landmark for p, landmark in TRAIN.items()}
    assert dataset.paths[full("a3")] == root / "train" / "a" / "3" / "0" / f"{full('a3')}.jpg"
    # Two landmarks on one photo: both are right.
    assert [(q.id, short(q.positives)) for q in dataset.queries] == [
        (full("c0"), ["a0", "a1", "a2"]),
        (full("c2"), ["a3"]),
    ]
    assert [q.id for q in dataset.distractor_queries] == [full("c1")]
    assert dataset.queries[0].scene == "7 8" and dataset.queries[0].subset == "private"


def test_recognition_against_the_clean_training_set(root):
    dataset = read_google_landmarks(root, task="recognition", clean=True)
    assert short(dataset.database) == ["a0", "a1", "a2"]
    # The clean set lacks landmark 9: nothing answers that query any more.
    assert [q.id for q in dataset.queries] == [full("c0")]
    assert [q.id for q in dataset.distractor_queries] == [full("c1"), full("c2")]


def test_landmarks_of_the_index_where_they_are_known(root):
    write_csv(
        root / "index" / "index_image_to_landmark.csv",
        ("id", "landmark_id"),
        [(full("b0"), "7"), (full("zz"), "8")],
    )
    assert read_google_landmarks(root).labels == {full("b0"): "7"}


def test_what_is_absent(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no file 'index\.csv'; get the Google Landmarks"):
        read_google_landmarks(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"no file 'train\.csv'"):
        read_google_landmarks(tmp_path / "empty", task="recognition")
    (root / landmarks_path("index", full("b2"))).unlink()
    with pytest.raises(DatasetError, match=r"1 photo.*'b2000"):
        read_google_landmarks(root)
    kept = read_google_landmarks(root, missing="drop")
    assert short(kept.database) == ["b0", "b1"] and short(kept.queries[0].positives) == ["b0"]
    assert len(read_google_landmarks(root, check_files=False).database) == 3


def test_arguments():
    for arguments in ({"task": "search"}, {"split": "test"}):
        with pytest.raises(ValueError, match="must be one of"):
            read_google_landmarks(".", **arguments)


@pytest.mark.parametrize(
    ("table", "header", "rows", "message"),
    [
        ("index.csv", ("id",), [("ab",)], "index.csv, line 2: an id must be at least three"),
        ("index.csv", ("id",), [("../../../x",)], "line 2: an id must be"),
        (
            "index.csv",
            ("id",),
            [(full(p),) for p in ("b0", "b2", "b0")],
            "every id once; more than once: 'b000",
        ),
        ("index.csv", ("name",), [], r"must have the column\(s\) 'id'"),
        (
            "retrieval_solution_v2.1.csv",
            ("id", "images", "Usage"),
            [(full("c0"), full("b0"), "Secret")],
            "line 2: Usage must be Private, Public or Ignored; got 'secret'",
        ),
        (
            "retrieval_solution_v2.1.csv",
            ("id", "images", "Usage"),
            [(full("c0"), full("b9"), "Private")],
            "1 photo.*'b9000",
        ),
        (
            "retrieval_solution_v2.1.csv",
            ("id", "images", "Usage"),
            [(full("c0"), full("b0"), "Private")] * 2,
            "queries must have different ids",
        ),
    ],
)
def test_bad_tables_are_refused(tmp_path, table, header, rows, message):
    root = write(tmp_path)
    write_csv(root / "metadata" / table, header, rows)
    with pytest.raises(DatasetError, match=message):
        read_google_landmarks(root)

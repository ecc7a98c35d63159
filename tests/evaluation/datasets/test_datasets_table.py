"""The plain CSV table: roles, labels, locations, the rule of distance, and bad tables."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from evaluation.datasets.trees import write_csv, write_photos
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch.errors import DatasetError
from delfsearch.evaluation.datasets import read_table

HEADER = ("path", "role", "label", "latitude", "longitude")
ROWS = [
    ("db/été.jpg", "db", "tower", "51.75", "-1.25"),
    ("db/2.jpg", "database", "tower", "", ""),
    ("db/3.jpg", "db", "bridge", "90", "180"),
    ("d/1.jpg", "distractor", "tower", "", ""),
    ("q/1.jpg", "query", "tower", "51.76", "-1.2"),
    ("db/2.jpg", "query", "tower", "", ""),
    ("q/2.jpg", "query_nomatch", "cat", "", ""),
    ("q/3.jpg", "distractor_query", "", "-90", "-180"),
]


def write(root: Path, rows=ROWS, header=HEADER, photos: bool = True) -> Path:
    if photos:
        write_photos(root, {str(row[0]) for row in rows})
    return write_csv(root / "set.csv", header, rows)


def test_labels_say_what_is_right(tmp_path):
    file = write(tmp_path)
    dataset = read_table(file)
    assert dataset.name == "table" and dataset.root == tmp_path and dataset.radius_km is None
    assert dataset.database == ("db/été.jpg", "db/2.jpg", "db/3.jpg", "d/1.jpg")
    assert dataset.labels == {"db/été.jpg": "tower", "db/2.jpg": "tower", "db/3.jpg": "bridge"}
    assert dataset.locations == {"db/été.jpg": (51.75, -1.25), "db/3.jpg": (90.0, 180.0)}
    assert dataset.paths["db/été.jpg"] == tmp_path / "db" / "été.jpg"
    first, own = dataset.queries
    assert first.id == "q/1.jpg" and first.positives == {"db/été.jpg", "db/2.jpg"}
    assert first.scene == "tower" and first.location == (51.76, -1.2) and not first.junk
    # A query in the database: its own photo is ignored.
    assert own.id == "db/2.jpg" and own.positives == {"db/été.jpg"} and own.junk == {"db/2.jpg"}
    nomatch, distractor = dataset.distractor_queries
    assert nomatch.id == "q/2.jpg" and nomatch.scene == "cat" and nomatch.kind == "distractor"
    assert distractor.id == "q/3.jpg" and distractor.location == (-90.0, -180.0)
    assert read_table(tmp_path) == dataset


def test_distance_says_what_is_right(tmp_path):
    rows = [row for row in ROWS if row[0] != "db/2.jpg"]
    dataset = read_table(write(tmp_path, rows), radius_km=25, name="large")
    assert dataset.name == "large" and dataset.radius_km == 25.0
    (query,) = dataset.queries
    assert query.positives == frozenset() and query.location == (51.76, -1.2)
    with pytest.raises(DatasetError, match=r"must have a location.* 'db/2\.jpg' have none"):
        read_table(write(tmp_path), radius_km=25)
    with pytest.raises(DatasetError, match="radius_km must be positive"):
        read_table(write(tmp_path, rows), radius_km=-1)


def test_columns_in_any_order_and_only_what_is_needed(tmp_path):
    write_photos(tmp_path, ["a.jpg", "b.jpg"])
    file = tmp_path / "t.csv"
    file.write_bytes(
        b'\xef\xbb\xbfnote, role ,label,path\r\n"x,\r\ny",db,l,a.jpg\r\n\r\nz,query,l,b.jpg\r\n'
    )
    dataset = read_table(file)
    assert dataset.database == ("a.jpg",) and dataset.queries[0].positives == {"a.jpg"}


def test_the_photos_may_lie_elsewhere(tmp_path):
    file = write(tmp_path / "tables", photos=False)
    write_photos(tmp_path / "photos", {row[0] for row in ROWS})
    assert read_table(file, root=tmp_path / "photos").root == tmp_path / "photos"
    with pytest.raises(DatasetError, match=r"7 photo\(s\).*'d/1\.jpg'"):
        read_table(file)
    assert len(read_table(file, check_files=False).database) == 4
    with pytest.raises(DatasetError, match="does not exist"):
        read_table(file, root=tmp_path / "nowhere")


def test_absent_photos_can_be_dropped(tmp_path):
    file = write(tmp_path)
    (tmp_path / "db" / "été.jpg").unlink()
    kept = read_table(file, missing="drop")
    assert kept.database == ("db/2.jpg", "db/3.jpg", "d/1.jpg")
    # The query in the database had no other right answer.
    assert [q.id for q in kept.queries] == ["q/1.jpg"]
    assert set(kept.labels) == {"db/2.jpg", "db/3.jpg"} and set(kept.locations) == {"db/3.jpg"}


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("path", "kind"), [], r"must have the column\(s\) 'role' .* it has 'path', 'kind'"),
        ((), [], r"must have the column\(s\) 'path', 'role' .* it has nothing"),
        (("path", "role", "role"), [], "every column once; 'role' is repeated"),
        (HEADER, [], "at least one photo"),
        (HEADER, [("a", "db")], "line 2: must have 5 columns as the header; got 2"),
        (HEADER, [("a", "db", "", "", "", "")], "line 2: must have 5 columns .* got 6"),
        (HEADER, [("a", "train", "", "", "")], "line 2: role must be one of 'db', .* got 'train'"),
        (HEADER, [("", "db", "", "", "")], "line 2: path must not be empty"),
        (HEADER, [("/etc/passwd", "db", "", "", "")], "must be relative to the folder"),
        (HEADER, [("../x.jpg", "db", "", "", "")], "must be relative to the folder"),
        (HEADER, [("a/../../x.jpg", "db", "", "", "")], "must be relative to the folder"),
        (HEADER, [("C:\\x.jpg", "db", "", "", "")], "must be relative to the folder"),
        (HEADER, [("a", "db", "", "91", "0")], r"line 2: must have a latitude .* got 91\.0"),
        (HEADER, [("a", "db", "", "0", "-180.1")], "line 2: must have a longitude"),
        (HEADER, [("a", "db", "", "nan", "0")], "must have a latitude .* got nan"),
        (HEADER, [("a", "db", "", "0", "inf")], "must have a longitude .* got inf"),
        (HEADER, [("a", "db", "", "N51", "0")], "must both be degrees.* got 'N51' and '0'"),
        (HEADER, [("a", "db", "", "51", "")], "must both be degrees.* got '51' and ''"),
        (
            HEADER,
            [("a", "db", "", "", ""), ("a", "distractor", "", "", "")],
            "line 3: 'a' is there already as a photo of the database",
        ),
        (
            HEADER,
            [("a", "query", "", "", ""), ("a", "distractor_query", "", "", "")],
            "line 3: 'a' is there already as a query",
        ),
        (
            HEADER,
            [("a", "db", "x", "", ""), ("b", "query", "y", "", ""), ("c", "query", "", "", "")],
            "every query must have a positive; 'b', 'c' have none",
        ),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path, header, rows, message):
    with pytest.raises(DatasetError, match=message):
        read_table(write(tmp_path, rows, header, photos=False), check_files=False)


def test_what_is_no_table(tmp_path):
    with pytest.raises(DatasetError, match=r"a CSV file or a folder with one; .* does not exist"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DatasetError, match="has 0 of them"):
        read_table(tmp_path)
    file = tmp_path / "t.csv"
    file.write_bytes(b"path,role\ncaf\xe9.jpg,db\n")
    with pytest.raises(DatasetError, match=r"t\.csv must be a table in UTF-8"):
        read_table(file)
    file.write_bytes(b'path,role\n"a"b,db\n')
    with pytest.raises(DatasetError, match="line 2: is not CSV"):
        read_table(file)
    file.write_bytes(b'path,role\n"a,db\n')
    with pytest.raises(DatasetError, match="is not CSV"):
        read_table(file)
    (tmp_path / "u.csv").touch()
    with pytest.raises(DatasetError, match="has 2 of them"):
        read_table(tmp_path)


labels = st.sampled_from(["", "a", "b", "c"])
places = st.none() | st.tuples(st.floats(-90, 90), st.floats(-180, 180))
rows_of_tables = st.lists(
    st.tuples(st.sampled_from(["db", "distractor", "query", "query_nomatch"]), labels, places),
    min_size=1,
    max_size=12,
)


def slow_truth(rows):
    """Right answers of every query, by comparing each with every photo."""
    return {
        path: {p for p, (role, label, _) in rows.items() if role == "db" and label == asked != ""}
        for path, (what, asked, _) in rows.items()
        if what == "query"
    }


@given(rows_of_tables, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_and_the_order_of_rows_changes_no_truth(drawn, random):
    rows = {f"{i}/photo é {i}.jpg": row for i, row in enumerate(drawn)}
    truth = slow_truth(rows)
    if not all(truth.values()) or not any(role in ("db", "distractor") for role, _, _ in drawn):
        return
    read = []
    for _ in range(2):
        order = list(rows)
        random.shuffle(order)
        table = [
            (path, rows[path][0], rows[path][1], *(rows[path][2] or ("", ""))) for path in order
        ]
        with tempfile.TemporaryDirectory() as folder:
            read.append(read_table(write(Path(folder), table, photos=False), check_files=False))
        assert list(read[-1].database) == [
            path for path in order if rows[path][0] in ("db", "distractor")
        ]
        assert {q.id: set(q.positives) for q in read[-1].queries} == truth
        assert {q.id: q.location for q in read[-1].all_queries} == {
            path: rows[path][2] for path in order if rows[path][0].startswith("query")
        }
        assert read[-1].locations == {
            path: rows[path][2] for path in read[-1].database if rows[path][2]
        }
    assert set(read[0].database) == set(read[1].database)
    assert read[0].labels == read[1].labels

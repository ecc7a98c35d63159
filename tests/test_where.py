"""Where: what it takes, what it refuses, and which photos satisfy it."""

from __future__ import annotations

import json
import pickle
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch import Where
from delfsearch.index.selection import photos_of
from delfsearch.storage.catalog import Catalog
from delfsearch.storage.records import ImageRecord, split_metadata

POSITIONS = [
    (0.0, 0.0),
    (10.0, 179.5),
    (10.0, -179.5),
    (-45.5, 180.0),
    (-45.5, -180.0),
    (90.0, 5.0),
    (-90.0, -5.0),
    (None, None),
    (3.0, None),
]


def catalog_of(metadata: list[dict]) -> Catalog:
    catalog = Catalog.in_memory()
    records = [ImageRecord(id=3 * i, **split_metadata(entry)) for i, entry in enumerate(metadata)]
    catalog.insert("images", [record.to_row() for record in records])
    return catalog


def found(photos: list[dict], **conditions) -> list[int]:
    """Numbers of the entries that satisfy the conditions."""
    where = Where.of(conditions)
    assert where is not None
    return (photos_of(where, catalog_of(photos)) // 3).tolist()


def holds(entry: dict, name: str, condition) -> bool:
    """Say the same in Python."""
    value = entry.get(name)
    if isinstance(condition, dict):
        ends = list(condition.values())
        if value is None or isinstance(value, (bool, list, dict)):
            return False
        if isinstance(value, str) != isinstance(ends[0], str):
            return False
        return condition.get("min", value) <= value <= condition.get("max", value)
    wanted = condition if isinstance(condition, list) else [condition]
    return not isinstance(value, (list, dict)) and value in wanted


def test_labels_paths_and_hashes():
    metadata = [
        {"label": "tower", "path": "a/1.jpg", "content_hash": "00"},
        {"label": "brücke", "path": "a/2.jpg", "content_hash": "01"},
        {"path": "b/3.jpg"},
        {"label": "tower"},
    ]
    assert found(metadata, label="tower") == [0, 3]
    assert found(metadata, label=["brücke", "no such"]) == [1]
    assert found(metadata, label={"tower", "brücke"}) == [0, 1, 3]
    assert found(metadata, label=[None]) == [2]
    assert found(metadata, label=["tower", None]) == [0, 2, 3]
    assert found(metadata, label=[]) == []
    assert found(metadata, label="x' OR 1 --") == []
    assert found(metadata, metadata={"path": {"min": "a/", "max": "a/~"}}) == [0, 1]
    assert found(metadata, metadata={"content_hash": ["01", "02"]}) == [1]
    assert found(metadata, label="tower", metadata={"path": {"min": ""}}) == [0]
    assert found(metadata, label=["tower", "brücke"], metadata={"label": "tower"}) == [0, 3]
    many = [f"label {i}" for i in range(5000)]
    assert found(metadata, label=[*many, "tower"]) == [0, 3]


@pytest.mark.parametrize(
    "bounds, expected",
    [
        ((0, 0, 0, 0), [0]),
        ((-90, -180, 90, 180), [0, 1, 2, 3, 4, 5, 6]),
        ((0, 170, 20, -170), [1, 2]),
        ((0, -179, 20, 179), [0]),
        ((0, 179.5, 20, 180), [1]),
        ((-50, 170, 0, 180), [3, 4]),
        ((-50, -180, 0, -170), [3, 4]),
        ((-50, 180, 0, -180), [3, 4]),
        ((89, -180, 90, 180), [5]),
        ((np.float32(1), -10, np.int8(4), 10), []),
    ],
)
def test_boxes_include_their_edges_and_cross_the_180th_meridian(bounds, expected):
    metadata = [{"latitude": lat, "longitude": lon} for lat, lon in POSITIONS]
    assert found(metadata, bounds=bounds) == expected
    assert found(metadata, bounds=np.array(bounds, np.float64)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.floats(-90, 90), st.floats(-90, 90)).map(sorted),
    st.floats(-180, 180),
    st.floats(-180, 180),
    st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), max_size=8),
)
def test_boxes_against_plain_python(latitudes, west, east, positions):
    south, north = latitudes
    metadata = [{"latitude": lat, "longitude": lon} for lat, lon in positions]

    def inside(lat: float, lon: float) -> bool:
        names = {lon, 180.0, -180.0} if abs(lon) == 180 else {lon}
        across = any(
            (west <= x <= east) if west <= east else (x >= west or x <= east) for x in names
        )
        return south <= lat <= north and across

    expected = [i for i, position in enumerate(positions) if inside(*position)]
    assert found(metadata, bounds=(south, west, north, east)) == expected


def test_entries_of_ones_own():
    metadata = [
        {"year": 2019, "night": True},
        {"year": 2019.5, "night": False},
        {"year": "2019", "tags": ["a", "b"]},
        {"year": None, "tags": '["a","b"]'},
        {},
        {"year": [2019], "a.b": {"c": 1}, 'q"u\\o$te': 7, "ключ": "да", "": 0, "c": 5},
        {"year": 2**80, "night": 1},
    ]

    def of(**conditions):
        return found(metadata, metadata=conditions)

    assert of(year=2019) == [0] == of(year=2019.0) == of(year=np.int16(2019))
    assert of(year="2019") == [2] and of(year=[2019, "2019"]) == [0, 2]
    assert of(year={"min": 2019, "max": 2020}) == [0, 1]
    assert of(year={"min": 2019.25}) == [1, 6] and of(year={"max": 2019}) == [0]
    assert of(year={"min": "2018", "max": None}) == [2]
    assert of(year=None) == [3, 4] == of(year=[None, 7])
    assert of(year=2**80) == [6]
    assert of(night=True) == [0, 6] and of(night=0) == [1] and of(night={"min": 0}) == [6]
    assert of(tags='["a","b"]') == [3] and of(tags=["a", "b"]) == []
    assert of(**{'q"u\\o$te': 7}) == of(**{"ключ": ["да"]}) == of(**{"": 0}) == [5]
    assert of(**{"a.b": None}) == [0, 1, 2, 3, 4, 6] and of(**{"a.b.c": 1}) == of(b=1) == []
    assert of(**{"ключ": None, "c": 5}) == [] and of(**{"ключ": {"min": "а"}, "c": {"max": 5}}) == [
        5
    ]
    assert of(year=2019, night=False) == [] and of(year=2019, night=1) == [0]
    assert of(year=list(range(1500, 2500))) == [0]


NAMES = st.sampled_from(["year", "a b", "ключ", "a.b", '"', "\\", "$", "[0]"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.integers(-3, 3).map(lambda n: n / 4),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
)
ENTRIES = st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=2), max_size=3)
CONDITIONS = st.one_of(
    VALUES,
    st.lists(VALUES, max_size=4),
    st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda r: {"min": r[0], "max": sum(r)}),
    st.text("ab", max_size=2).map(lambda text: {"max": text}),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, max_size=6), st.dictionaries(NAMES, CONDITIONS, min_size=1, max_size=2))
def test_entries_against_plain_python(metadata, conditions):
    expected = [
        i
        for i, entry in enumerate(metadata)
        if all(holds(entry, name, condition) for name, condition in conditions.items())
    ]
    assert found(metadata, metadata=conditions) == expected


def test_ids_are_a_set():
    metadata = [{"label": "a"}, {"label": "b"}, {"label": "a"}]
    assert found(metadata, ids=[6, 3, 3, 99, -5], label="a") == [2]
    for ids in (np.array([6, 0], np.uint8), {0, 6}, (6, 0), iter([0, 6]), range(0, 7, 6)):
        where = Where(ids=ids)
        assert where.id_array.tolist() == [0, 6] and where.id_array.dtype == np.int64
    assert Where(ids=[]).id_array.tolist() == [] and Where.of({"ids": []}) is not None
    given = np.array([1, 2])
    where = Where(ids=given)
    given[:] = 9
    assert where.id_array.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        where.id_array[0] = 3


def test_equal_conditions_are_equal_and_hash_alike():
    one = Where(ids=[2, 1], label={"b", "a"}, bounds=[1, 2, 3, 4], metadata={"x": [2.0], "y": None})
    other = Where(
        ids=np.array([1, 2, 2]),
        label=("a", "b"),
        bounds=(1.0, 2, 3, 4),
        metadata={"y": [None], "x": 2},
    )
    assert one == other and hash(one) == hash(other) and one != Where(ids=[1]) and one != 3
    assert pickle.loads(pickle.dumps(one)) == one
    assert (
        Where(**{name: getattr(one, name) for name in ("ids", "label", "bounds", "metadata")})
        == one
    )
    assert Where(label="a") == Where(metadata={"label": "a"})
    assert "tower" in repr(Where(label="tower"))


def test_nothing_asked_is_no_filter():
    for where in (None, {}, Where(), {"metadata": {}}, {"label": None, "ids": None}):
        assert Where.of(where) is None


@pytest.mark.parametrize(
    "conditions, error, text",
    [
        ({"lable": "x"}, ValueError, "no keys but ids, label, bounds, metadata; got 'lable'"),
        ({"year": 2019}, ValueError, "go into metadata"),
        ({"key": ()}, ValueError, "got 'key'"),
        (7, TypeError, "where must be a Where or a mapping"),
        ("label", TypeError, "where must be a Where"),
        ([("label", "x")], TypeError, "where must be a Where"),
        ({"ids": 5}, TypeError, "ids must be a list of integers; got 5"),
        ({"ids": "12"}, TypeError, "ids must be a list"),
        ({"ids": [1.5]}, ValueError, "ids must be integers; got dtype float64"),
        ({"ids": [True]}, TypeError, "ids must be a list of integers"),
        ({"ids": ["a"]}, ValueError, "ids must be integers"),
        ({"ids": [2**63]}, ValueError, "ids must fit int64"),
        ({"ids": [[1, 2]]}, ValueError, "ids must be a 1-D array"),
        ({"label": 3}, TypeError, "label must be text; got 3"),
        ({"label": ["a", 3]}, TypeError, "label must be text; got 3"),
        ({"label": b"a"}, TypeError, "label must be text"),
        ({"label": {"min": "a"}}, TypeError, "label must be text"),
        ({"label": "\ud800"}, ValueError, "label is not valid Unicode"),
        ({"bounds": ()}, ValueError, r"4 numbers, \(south, west, north, east\) in degrees; got 0"),
        ({"bounds": (1, 2, 3)}, ValueError, "got 3"),
        ({"bounds": 5}, TypeError, "bounds must be .south"),
        ({"bounds": "1,2,3,4"}, TypeError, "bounds must be .south"),
        ({"bounds": (1, 2, 3, "4")}, TypeError, "bounds: east must be a number"),
        ({"bounds": (1, 2, None, 4)}, TypeError, "bounds: north must be a number"),
        ({"bounds": (2, 0, 1, 0)}, ValueError, "south <= north; got south 2.0, north 1.0"),
        ({"bounds": (float("nan"), 0, 1, 0)}, ValueError, "bounds: south must be finite; got nan"),
        ({"bounds": (0, float("inf"), 1, 0)}, ValueError, "bounds: west must be finite"),
        ({"bounds": (-91, 0, 1, 0)}, ValueError, "south must be at least -90"),
        ({"bounds": (0, 0, 1, 181)}, ValueError, "east must be at most 180"),
        ({"metadata": ["year"]}, TypeError, "metadata must map names to conditions"),
        ({"metadata": {3: 1}}, TypeError, "names of type str; got 3"),
        ({"metadata": {"\udfff": 1}}, ValueError, "not valid Unicode"),
        ({"metadata": {"x": float("nan")}}, ValueError, "'x' must be finite; got nan"),
        ({"metadata": {"x": [1, float("inf")]}}, ValueError, "'x' must be finite"),
        ({"metadata": {"x": 10**400}}, ValueError, "below 1.8e308"),
        ({"metadata": {"x": [[1]]}}, TypeError, "'x' must be a value"),
        ({"metadata": {"x": b"1"}}, TypeError, "'x' must be a value"),
        ({"metadata": {"x": 1j}}, TypeError, "'x' must be a value"),
        ({"metadata": {"x": {}}}, ValueError, "'x' must be a range"),
        ({"metadata": {"x": {"from": 1}}}, ValueError, "'x' must be a range"),
        (
            {"metadata": {"x": {"min": None}}},
            TypeError,
            "'x' must range over numbers or over texts",
        ),
        ({"metadata": {"x": {"min": 1, "max": "2"}}}, TypeError, "numbers or over texts"),
        ({"metadata": {"x": {"min": True}}}, TypeError, "numbers or over texts"),
        ({"metadata": {"x": {"min": 3, "max": 2}}}, ValueError, "min <= max"),
        ({"metadata": {"x": {"min": "b", "max": "a"}}}, ValueError, "min <= max"),
        ({"metadata": {"x": {"min": float("nan")}}}, ValueError, "finite"),
        ({"metadata": {"path": 3}}, TypeError, "'path' must be text; got 3"),
        ({"metadata": {"latitude": "3"}}, TypeError, "'latitude' must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(conditions, error, text):
    with pytest.raises(error, match=text):
        Where.of(conditions)


def test_filters_by_entries_need_json_and_say_so(monkeypatch):
    catalog = catalog_of([{"year": 2019}])

    def without_json(*arguments):
        raise sqlite3.OperationalError("no such function: json_extract")

    class Connection:
        execute = staticmethod(without_json)

    monkeypatch.setattr(catalog, "_connection", Connection())
    with pytest.raises(RuntimeError, match="JSON"):
        photos_of(Where(metadata={"year": 2019}), catalog)


def test_metadata_is_stored_as_the_paths_expect():
    # A name that JSON writes as it is stands so in the table.
    (row,) = catalog_of([{"a.b": 1}]).select("images")
    assert json.loads(row[-1]) == {"a.b": 1} and '"a.b"' in row[-1]

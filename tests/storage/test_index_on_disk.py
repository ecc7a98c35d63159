"""What is on disk: round trips, damage of every kind, versions, read-only places."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from search_helpers import files_of, make_collection, make_features, same_matches

from delfsearch.errors import IndexFormatError
from delfsearch.index.builder import IndexBuilder
from delfsearch.index.delf_index import DelfIndex
from delfsearch.storage import arrays as array_files
from delfsearch.storage.catalog import FORMAT_VERSION, TABLES
from delfsearch.storage.records import NotIndexed

DATA = Path(__file__).parents[1] / "data"
# By method; how they were made: golden_index(method).save(GOLDEN[method]), once.
GOLDEN = {"kdtree": DATA / "index-format-1", "ivf": DATA / "index-format-1-lists"}
LISTS = {"method": "ivf", "n_lists": 2, "n_probe": 2, "code": "4x4", "postings": "features"}


METHODS = {
    "kdtree": {"method": "kdtree"},
    "ivf": {"method": "ivf", "code": "4x5", "n_lists": 4, "n_probe": 3, "leaf_size": 64},
}


@pytest.fixture(params=list(METHODS))
def index(tmp_path, request) -> DelfIndex:
    """A saved index with several segments, deletions, labels, notes and an attachment."""
    photos = make_collection()
    metadata = [{"path": f"фото/{i}.jpg", "label": "a", "n": i} for i in range(len(photos))]
    index = DelfIndex(merge_factor=0, k=12, **METHODS[request.param])
    index.fit(photos, metadata=metadata)
    index.attach("notes", {"text": "é"}, {"values": np.arange(5.0)})
    index.set_not_indexed([NotIndexed("bad.jpg", "unreadable"), NotIndexed("copy.jpg", "same", 0)])
    index.save(tmp_path / "index")
    index.add(photos[:2])
    index.remove([0, 3])
    index.update([2], [photos[4]])
    return index.save()


@pytest.fixture
def query():
    return make_features(np.random.default_rng(9), 15)


def test_a_loaded_index_is_the_saved_one(index, query):
    loaded = DelfIndex.load(index.path, verify=True)
    assert loaded.get_params() == index.get_params()
    assert [r for r in loaded.images()] == [r for r in index.images()]
    assert loaded.not_indexed() == index.not_indexed() == [NotIndexed("bad.jpg", "unreadable")]
    assert loaded.attachment("notes")[0] == {"text": "é"}
    assert loaded.attachment("notes")[1]["values"].tolist() == list(range(5))
    assert loaded.attachment("none") is None
    for k in (1, 12, 300):
        assert same_matches(loaded.query(query, k=k), index.query(query, k=k))
    assert loaded.add([query]).tolist() == [9]


def test_arrays_are_mapped_and_not_writable(index):
    loaded = DelfIndex.load(index.path)
    for segment in loaded._segments.view.segments:
        for array in (segment.keypoints_xy, segment.scores, segment.image_ids):
            assert not array.flags.writeable
    usage = loaded.memory_usage()
    # What finds the nearest cells has copies of their centres.
    assert usage["mapped"] > 0.8 * usage["total"]


def test_the_same_collection_makes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        DelfIndex().fit(make_collection()).save(tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_save_writes_only_what_is_new(index, query):
    before = files_of(index.path)
    stamps = {name: (index.path / name).stat().st_mtime_ns for name in before}
    index.add([query])
    index.save()
    after = files_of(index.path)
    kept = [name for name in before if name.startswith(("segment", "attachment"))]
    assert all(after[name] == before[name] for name in kept)
    assert all((index.path / name).stat().st_mtime_ns == stamps[name] for name in kept)
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert len(new) == 1 and new.pop().startswith("segment-")


def test_saving_again_without_changes_writes_nothing(index):
    before = {p: p.stat().st_mtime_ns for p in index.path.rglob("*")}
    index.save().save(index.path)
    assert {p: p.stat().st_mtime_ns for p in index.path.rglob("*")} == before


def test_save_elsewhere_moves_there_with_uncommitted_changes(index, query, tmp_path):
    old, before = index.path, files_of(index.path)
    new_id = index.add([query]).tolist()[0]
    index.save(tmp_path / "deeper" / "copy")
    assert index.path == tmp_path / "deeper" / "copy"
    assert files_of(old) == before
    assert new_id not in DelfIndex.load(old).ids
    copy = DelfIndex.load(index.path, verify=True)
    assert new_id in copy.ids and same_matches(copy.query(query), index.query(query))
    index.add([query])
    assert index.save().check() == []


def test_a_folder_that_is_not_ours_is_never_written_over(index, tmp_path):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty"):
        index.save(other)
    with pytest.raises(FileExistsError, match="is a file"):
        index.save(other / "a.jpg")
    DelfIndex().fit(make_collection()).save(tmp_path / "second")
    with pytest.raises(FileExistsError, match="already holds an index"):
        index.save(tmp_path / "second")
    (tmp_path / "empty").mkdir()
    assert index.save(tmp_path / "empty").check() == []


def test_save_without_a_path_needs_a_folder():
    with pytest.raises(ValueError, match="path must be given"):
        DelfIndex().fit(make_collection()).save()


# -- damage -------------------------------------------------------------------------------------


def test_every_flipped_byte_is_found(index):
    """Of each file some tens of bytes, spread over all of it, in all bit positions."""
    path = index.path
    assert index.check() == []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        step = max(1, len(content) // (90 if file.suffix == ".sqlite" else 11))
        for at in range(0, len(content), step):
            damaged = bytearray(content)
            damaged[at] ^= 1 << (at % 8)
            file.write_bytes(damaged)
            try:
                loaded = DelfIndex.load(path)
            except IndexFormatError:
                pass
            else:
                assert loaded.check() != [], f"byte {at} of {file.name}"
                with pytest.raises(IndexFormatError, match="damaged"):
                    DelfIndex.load(path, verify=True)
        file.write_bytes(content)
    assert DelfIndex.load(path, verify=True).check() == []


def test_damage_that_a_query_could_not_survive_is_refused_on_load(index):
    """Shapes, dtypes and ranges are checked without being asked: the core must never see these."""
    segment = sorted(index.path.glob("segment-*"))[0]
    for name in ("offsets", "image_ids"):
        file = segment / f"{name}.npy"
        content = file.read_bytes()
        array = np.load(file)
        for bad in (array + 1, array[::-1], np.full_like(array, -1), np.full_like(array, 2**62)):
            if len(array) == 1 and name == "image_ids" and bad[0] >= 0:
                continue
            array_files.write_array(file, bad)
            with pytest.raises(IndexFormatError, match="damaged"):
                DelfIndex.load(index.path)
        file.write_bytes(content)
    for name in {"kdtree": ("tree.ids",), "ivf": ("lists.id_starts", "lists.sizes")}[index.method]:
        ids = segment / f"{name}.npy"
        content = ids.read_bytes()
        array_files.write_array(ids, np.full_like(np.load(ids), 255))
        with pytest.raises(IndexFormatError, match="damaged"):
            DelfIndex.load(index.path)
        ids.write_bytes(content)
    DelfIndex.load(index.path, verify=True)


@pytest.mark.parametrize("keep", [0, 1, 50, 0.5, -1])
def test_truncated_files_are_refused(index, keep):
    for file in [*sorted(index.path.rglob("*.npy")), index.path / "catalog.sqlite"]:
        content = file.read_bytes()
        size = int(len(content) * keep) if isinstance(keep, float) else keep
        file.write_bytes(content[:size])
        try:
            loaded = DelfIndex.load(index.path)
            assert loaded.check() != []
        except IndexFormatError as error:
            assert str(index.path) in str(error) or file.parent.name in str(error)
        file.write_bytes(content)


def test_missing_files_are_refused_or_found(index):
    for file in sorted(p for p in index.path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        file.unlink()
        try:
            assert DelfIndex.load(index.path).check() != []
        except IndexFormatError:
            pass
        file.write_bytes(content)


def test_segments_swapped_with_those_of_another_index_are_refused(index, tmp_path):
    other = DelfIndex(merge_factor=0).fit(make_collection(3, counts=(5, 6))).save(tmp_path / "b")
    for segment in index.path.glob("segment-*"):
        shutil.rmtree(segment)
        shutil.copytree(next(other.path.glob("segment-*")), segment)
    with pytest.raises(IndexFormatError, match="damaged"):
        DelfIndex.load(index.path)


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(IndexFormatError, match="no such folder"):
        DelfIndex.load(tmp_path / "absent")
    with pytest.raises(IndexFormatError, match=r"is not an index of delfsearch: it has no catalog"):
        DelfIndex.load(tmp_path)
    file = tmp_path / "catalog.sqlite"
    for content in (b"", b"x" * 50, b"hello" * 1000):
        file.write_bytes(content)
        with pytest.raises(IndexFormatError, match="not an SQLite file"):
            DelfIndex.load(tmp_path)
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    with pytest.raises(IndexFormatError, match="other application id"):
        DelfIndex.load(tmp_path)


def test_a_newer_format_is_refused_by_both_versions(index):
    connection = sqlite3.connect(index.path / "catalog.sqlite")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 6}")
    connection.commit()
    connection.close()
    with pytest.raises(
        IndexFormatError,
        match=rf"format version {FORMAT_VERSION + 6}; .* version {FORMAT_VERSION}\b",
    ):
        DelfIndex.load(index.path)


def test_each_table_has_a_checksum_of_its_own(index):
    """Rows changed through SQLite itself leave a sound file, but not a sound index."""
    for table, columns in TABLES.items():
        copy = index.path.with_name(f"copy-{table}")
        shutil.copytree(index.path, copy)
        connection = sqlite3.connect(copy / "catalog.sqlite")
        key = connection.execute(f"SELECT {columns[0]} FROM {table} LIMIT 1").fetchone()
        if key is not None:
            connection.execute(f"DELETE FROM {table} WHERE {columns[0]} = ?", key)
            connection.commit()
            connection.close()
            try:
                problems = DelfIndex.load(copy).check()
                assert any(f"table {table}" in problem for problem in problems)
            except (IndexFormatError, TypeError):
                pass


# -- read-only places ---------------------------------------------------------------------------


def as_nobody(action) -> None:
    """Run action in a child process without root's power to write anywhere."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            action()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX permissions")
def test_a_new_index_in_a_read_only_place_is_refused(tmp_path, query):
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    (tmp_path / "empty").mkdir()

    def action() -> None:
        for path in (tmp_path / "new", tmp_path / "a" / "b", tmp_path / "empty"):
            with pytest.raises(PermissionError, match="cannot be written"):
                IndexBuilder(DelfIndex(), path)
            with pytest.raises(PermissionError, match="cannot be written"):
                DelfIndex().fit([query]).save(path)

    tmp_path.chmod(0o555)
    (tmp_path / "empty").chmod(0o555)
    try:
        as_nobody(action)
    finally:
        tmp_path.chmod(0o755)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written: Not a directory"):
        IndexBuilder(DelfIndex(), tmp_path / "file" / "index")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX permissions")
def test_a_read_only_index_can_be_queried_but_not_changed(index, query):
    expected = index.query(query)
    for folder in [index.path, *index.path.parents][:4]:
        folder.chmod(0o755)
    for path in [index.path, *index.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def action() -> None:
        loaded = DelfIndex.load(index.path, verify=True)
        assert same_matches(loaded.query(query), expected)
        for change in (lambda: loaded.add([query]), lambda: loaded.remove([1])):
            with pytest.raises(PermissionError, match="cannot be written; save a copy"):
                change()
        assert same_matches(loaded.query(query), expected)
        with pytest.raises(PermissionError, match="cannot be written"):
            loaded.save(index.path / "inside")

    try:
        as_nobody(action)
    finally:
        for path in [index.path, *index.path.rglob("*")]:
            path.chmod(0o755)


def test_a_full_disk_loses_nothing(index, query, monkeypatch):
    before = files_of(index.path)
    original = array_files.write_array

    def full(path, array):
        if path.name == "scores.npy":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, array)

    monkeypatch.setattr(array_files, "write_array", full)
    index.add([query])
    with pytest.raises(OSError, match="cannot be written: No space left"):
        index.save()
    with pytest.raises(OSError, match="cannot be written: No space left"):
        index.save(index.path.with_name("other"))
    assert not index.path.with_name("other").exists()
    assert not list(index.path.parent.glob(".other*"))
    committed = DelfIndex.load(index.path, verify=True)
    assert 9 not in committed.ids
    assert {k: v for k, v in files_of(index.path).items() if k in before} == before
    monkeypatch.setattr(array_files, "write_array", original)
    index.save()  # what waited is still there
    assert 9 in DelfIndex.load(index.path, verify=True).ids
    assert same_matches(DelfIndex.load(index.path).query(query), index.query(query))


def test_two_writers_do_not_mix(index, query, monkeypatch):
    monkeypatch.setattr("delfsearch.storage.catalog._BUSY_SECONDS", 0.01)
    other = DelfIndex.load(index.path)
    index.add([query])
    with pytest.raises(BlockingIOError, match="being written by another process"):
        other.add([query])
    index.save()
    with pytest.raises(IndexFormatError, match="changed by another writer since it was loaded"):
        other.add([query])
    assert DelfIndex.load(index.path).add([query]).tolist() == [10]


def test_a_reader_keeps_its_answers_while_a_writer_works(index, query):
    reader = DelfIndex.load(index.path)
    expected = reader.query(query)
    index.remove([2])
    index.merge().save()
    assert same_matches(reader.query(query), expected)
    assert 2 not in DelfIndex.load(index.path).query(query, k=500).image_ids


# -- the golden file ----------------------------------------------------------------------------


def golden_index(method: str) -> DelfIndex:
    """What the golden indexes hold, with format version 1."""
    rng = np.random.default_rng(1)
    photos = [make_features(rng, n) for n in (6, 0, 9, 4)]
    metadata = [
        {"path": "a.jpg", "label": "Notre-Dame", "latitude": 48.853, "longitude": 2.35},
        {"path": "été/пусто.png"},
        {"path": "b.jpg", "content_hash": "00" * 32, "camera": "x"},
        None,
    ]
    lists = LISTS if method == "ivf" else {}
    index = DelfIndex(k=5, merge_factor=0, max_leaves=128, leaf_size=64, **lists)
    index.fit(photos, metadata=metadata)
    index.add([make_features(rng, 3)])
    index.remove([3])
    index.set_not_indexed([NotIndexed("bad.jpg", "unreadable")])
    index.attach("notes", {"version": 1}, {"values": np.arange(3, dtype=np.float32)})
    return index


@pytest.mark.parametrize("method", GOLDEN)
def test_format_version_1_is_read(tmp_path, method):
    shutil.copytree(GOLDEN[method], tmp_path / "index")
    loaded = DelfIndex.load(tmp_path / "index", verify=True)
    expected = golden_index(method)
    assert list(loaded.images()) == list(expected.images())
    assert loaded.not_indexed() == expected.not_indexed()
    assert loaded.get_params() == expected.get_params()
    assert loaded.attachment("notes")[1]["values"].tolist() == [0, 1, 2]
    for image_id in (0, 1, 2, 4):
        old, new = loaded.features_of(image_id), expected.features_of(image_id)
        np.testing.assert_array_equal(old.keypoints_xy, new.keypoints_xy)
        np.testing.assert_array_equal(old.scales, new.scales)
        np.testing.assert_allclose(old.descriptors, new.descriptors, atol=0.02)
        assert len(new) == 0 or image_id in loaded.query(new).image_ids
    query = make_features(np.random.default_rng(4), 7)
    assert set(loaded.query(query).image_ids) <= {0, 1, 2, 4}
    if method == "kdtree":
        assert set(loaded.query(query).image_ids) == set(expected.query(query).image_ids)
    assert loaded.add([query]).tolist() == [5]
    assert loaded.merge().save().check() == []


@pytest.mark.parametrize("method", GOLDEN)
def test_the_golden_index_is_small(method):
    assert sum(p.stat().st_size for p in GOLDEN[method].rglob("*") if p.is_file()) < 50_000


def test_damaged_ids_are_found_and_harm_no_query(tmp_path):
    """Packed ids are not read through at loading: whatever they hold is some id that there is."""
    photos = make_collection()
    index = DelfIndex(method="ivf", code="4x5", n_lists=3, n_probe=3).fit(photos)
    index.save(tmp_path / "index")
    file = next((tmp_path / "index").glob("segment-*")) / "lists.id_words.npy"
    words = np.load(file)
    rng = np.random.default_rng(0)
    for bad in (np.zeros_like(words), ~np.zeros_like(words), rng.permutation(words)):
        array_files.write_array(file, bad)
        loaded = DelfIndex.load(tmp_path / "index")
        found = loaded.query(photos[0], k=50)
        assert set(found.image_ids.tolist()) <= set(range(len(photos)))
        loaded.remove([0])
        assert 0 not in loaded.query(photos[0], k=50).image_ids
        assert any("lists.id_words" in problem for problem in loaded.check())
        loaded._store.close()  # it was changed, and keeps others from writing
        with pytest.raises(IndexFormatError, match="damaged"):
            DelfIndex.load(tmp_path / "index", verify=True)
